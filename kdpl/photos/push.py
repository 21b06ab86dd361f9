"""Upload prompts and their card to the Hugging Face Hub: `kdpl push OUT OWNER/NAME` (docs/hub.md)."""

import argparse
from collections.abc import Sequence

from kdpl.common import exits
from kdpl.config.command_line import add_learner_flag
from kdpl.photos.prompts import check_prompts, load_learner


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="kdpl push", description="Upload prompts and their card to the Hugging Face Hub.")
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training, or prompts.safetensors")
    add("repository", metavar="OWNER/NAME", help="the Hub's model repository; it is created if missing")
    add("--private", action="store_true", help="create it as a private one")
    add("--license", default="unknown", metavar="ID", help="licence of the prompts, by the Hub's names (default: unknown)")
    add_learner_flag(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    try:
        check_prompts(args.prompts, [args.repository])
        load_learner(args)

        from kdpl.bundle.hub import FILE_NAME, PREFIX, push

        address = push(args.prompts, args.repository, args.private, args.license)
    except (ValueError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)
    print(f'{FILE_NAME} and its card are at {address}; use: kdpl.load("{PREFIX}{args.repository}")')
    return 0
