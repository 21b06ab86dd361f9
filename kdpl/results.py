"""Query a run's `results.json`.

`python -m kdpl.results done FOLDER [--datasets emoji_meals ...]` prints the data sets without a result, one per line, and
exits with 0 only if there is none.
"""

import sys
from collections.abc import Sequence

from kdpl.common import exits
from kdpl.common.safe_text import ArgumentParser, print, run_command
from kdpl.config.keys import SPLITS, SUBSAMPLES
from kdpl.experiments.results import missing_datasets


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = ArgumentParser(prog="python -m kdpl.results", description="Query a run's results.json.")
    commands = parser.add_subparsers(required=True, metavar="command")
    done = commands.add_parser("done", help="print the data sets without a result; the status is 0 if there is none")
    done.add_argument("folder", help="output folder of the run")
    done.add_argument("--datasets", nargs="*", default=[], metavar="NAME", help="data sets (default: any)")
    done.add_argument("--classes", choices=SUBSAMPLES, default="all")
    done.add_argument("--split", choices=SPLITS, default="test")
    done.add_argument("--model-dir", metavar="DIR", help="ignore results older than this training run")
    args = parser.parse_args(argv)
    try:
        missing = missing_datasets(args.folder, args.datasets, args.classes, args.split, args.model_dir)
    except (ValueError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)
    print(*missing, sep="\n", end="\n" if missing else "")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
