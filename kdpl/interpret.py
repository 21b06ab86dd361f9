"""Interpret learned prompts as words: `python -m kdpl.interpret OUT` (kdpl/classifier/words.py)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kdpl.classifier import words as learned
from kdpl.common import exits
from kdpl.common.class_names import read_class_names
from kdpl.common.command import run_command
from kdpl.common.files import atomic_write
from kdpl.config.command_line import add_learner_flag


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m kdpl.interpret",
        description="Interpret learned prompts: the words nearest to their vectors, and the classes that they moved most.",
    )
    parser.add_argument("prompts", metavar="OUT", help="output folder of a training, or prompts.safetensors")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="words per vector (default: 5)")
    parser.add_argument("--classes", type=int, default=20, metavar="N", help="number of printed classes (default: 20)")
    parser.add_argument("--template", help='hand-written sentence, "an icon of a {}." (default: that of the teacher)')
    parser.add_argument("--classnames", metavar="FILE", help="other class names, one per line (default: those of the training)")
    parser.add_argument("--csv", metavar="FILE", help="also write both whole tables as CSV")
    parser.add_argument("--figure", metavar="FILE", help="also draw both as a figure, .png, .pdf or .svg (needs matplotlib)")
    parser.add_argument("--backbone", metavar="CLIP", help="the training's CLIP, if it has another name or path here")
    add_learner_flag(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> None:
    """Check the arguments before anything is loaded."""
    for name in ("top", "classes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name} is {getattr(args, name)}, expected at least 1.")
    if args.template is not None and args.template.count("{}") != 1:
        raise ValueError(f"--template '{args.template}' must hold one '{{}}' for the class name, as in 'a photo of a {{}}.'.")
    for path in filter(None, (args.csv, args.figure)):
        if Path(path).is_dir():
            raise ValueError(f"The output '{path}' is a folder: expected the path of a file.")
    if args.figure:
        try:
            import matplotlib.figure  # noqa: F401
        except ModuleNotFoundError:
            message = "--figure needs matplotlib, which is not installed: pip install 'kdpl[plot]', or leave --figure out."
            raise ModuleNotFoundError(message) from None
        suffix = Path(args.figure).suffix
        if suffix not in learned.FORMATS:
            formats = ", ".join(learned.FORMATS)
            raise ValueError(f"--figure '{args.figure}': '{suffix}' is not a figure format, expected {formats}.")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    try:
        check(args)
        names = read_class_names(args.classnames) if args.classnames else None
        if args.learner:
            from kdpl.trainers import load_learners

            load_learners(args.learner)

        from kdpl.classifier.classifier import load

        classifier = load(args.prompts, "cpu", args.backbone)
        if names:
            classifier.classnames = names
        template = args.template or classifier.bundle.template
        words = learned.word_rows(classifier, args.top)
        apart = learned.words_apart(learned.embeddings(classifier)) if words else 0.0
        has_text = learned.context(classifier) is not None or (
            classifier.student.class_specific and classifier.encoder.compares_texts
        )
        fixed = not has_text or classifier.student.text_depends_on_images
        moved = [] if fixed or not classifier.classnames else learned.moved_classes(classifier, template)
    except (ValueError, OSError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    for note in learned.notes(classifier):
        print(f"Note: {note}", file=sys.stderr)
    learned.print_tables(words, moved, apart, template, args.classes)
    try:
        if args.csv:
            learned.write_csv(args.csv, words, moved)
        if args.figure and not words and not moved:
            print("Note: there is nothing to draw, so no figure is written.", file=sys.stderr)
        elif args.figure:
            with atomic_write(args.figure) as file:
                learned.draw(words, moved, template).savefig(file, format=Path(args.figure).suffix[1:], dpi=150)
    except (OSError, ValueError) as error:
        return exits.report(error, exits.FAILED)
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
