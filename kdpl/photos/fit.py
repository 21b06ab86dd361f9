"""Learn from a folder of photos without labels: `kdpl fit PHOTOS names.txt -o OUT`, and `kdpl refit OUT other_names.txt`.

One pass over the photos computes the features of the frozen student and of the teacher, which OUT keeps. From them a head is
solved in closed form. On held-out photos it is compared with hand-written sentences, by agreement with the teacher, and the
better is what `kdpl predict OUT` uses. What can be checked cheaply is checked here, before PyTorch is imported.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from kdpl.common import exits
from kdpl.common.outputs import DEMO, FIT, check_folder
from kdpl.common.safe_text import read_class_names
from kdpl.config.keys import ConfigError
from kdpl.photos.commands import FEATURES, add_clip_flags, check_photos, check_sentences, doing, guarded

DEMO_OUT = "kdpl_demo"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl fit",
        usage="%(prog)s PHOTOS names.txt -o OUT [options]",
        description="Learn to name your photos from a stronger CLIP, without labels, and see whether that helped.",
    )
    add = parser.add_argument
    add("photos", nargs="?", metavar="PHOTOS", help="folder of photos, at any depth")
    add("names", nargs="?", metavar="names.txt", help="class names, one a line")
    add("-o", "--output", metavar="OUT", help="folder for what is learned, the photos' features, and a card")
    add("--demo", action="store_true", help=f"photos and models that come with kdpl (OUT: {DEMO_OUT})")
    add("--quick", action="store_true", help="look at 12 photos for each name, and at least 200")
    add_clip_flags(parser)
    trained = parser.add_mutually_exclusive_group()
    about = "also train class vectors, class-specific prompts, or shared ones"
    trained.add_argument("--learn", choices=("TaskRes", "CSC", "CoOp"), help=about)
    trained.add_argument("--best", action="store_true", help="also train all three, and use what is best")
    add("--seed", type=int, default=1, help="of the photos that are held out (default: 1)")
    _add_common(parser)
    args = parser.parse_args(argv)
    if args.demo and (args.photos or args.names):
        parser.error("--demo brings photos and names of its own: leave PHOTOS and names.txt out.")
    if not args.demo and not (args.photos and args.names and args.output):
        parser.error("expected PHOTOS, names.txt and -o OUT, or --demo.")
    return args


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--sentence", action="append", default=[], metavar="S", help="compare this sentence too; may be repeated")
    add("--labels", metavar="FILE", help="learn these labels, too: labels.csv of the gallery, or columns path and label")
    add("--quiet", action="store_true", help="no progress")


def check(args: argparse.Namespace) -> list[str]:
    """Return the class names, after what needs neither a model nor a photo is checked.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    check_sentences(*args.sentence)
    names = read_class_names(args.names)
    if len(names) == 1 and (args.labels or getattr(args, "learn", None) or getattr(args, "best", False)):
        raise ConfigError(f"'{args.names}' has one class name alone, from which nothing is learned: give more names.")
    if args.labels and not Path(args.labels).is_file():
        raise ConfigError(f"There is no file of labels '{args.labels}'.")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Run `kdpl fit`; return its exit status."""
    args = parse_args(argv)
    return guarded(lambda: run(args))


def run(args: argparse.Namespace) -> int:
    """Fit as the command line asks; return the exit status."""
    start, new = time.perf_counter(), "PHOTOS"
    check_sentences(args.template)
    if args.demo:
        demo = Path(args.output or DEMO_OUT)
        check_folder(demo, DEMO)
        check_folder(demo / "prompts", FIT)
        with doing("Drawing photos of things that the small model has not seen", quiet=args.quiet):
            from kdpl.photos.demo import write_demo

            args.photos, args.names = map(str, write_demo(demo))
        args.student, args.teacher, args.output = "emoji_student", args.teacher or "emoji_teacher", demo / "prompts"
        new = str(demo / "new_photos")
    if Path(args.names).is_dir() and Path(args.photos).is_file():
        raise ConfigError(f"PHOTOS '{args.photos}' is a file and names.txt '{args.names}' a folder: give the folder first.")
    check_photos(args.photos)
    names = check(args)
    check_folder(args.output, FIT, args.photos)
    with doing("Loading PyTorch", quiet=args.quiet):
        from kdpl.photos import fitting
    whole = fitting.fit(args, names)
    if args.demo:
        show_accuracy(args.output, demo / "labels.csv", args.template)
    print("", f"Done in {(time.perf_counter() - start) / 60:.1f} min. Next:", "", sep="\n")
    print(f"  kdpl predict {args.output} {new} --csv predictions.csv --html predictions.html")
    print(f"  kdpl open {args.output}                   sort them in the browser, and change names while looking")
    print(f"  kdpl refit {args.output} names.txt      other names for the same photos, in seconds")
    return 0 if whole else exits.SOME_UNREAD


def show_accuracy(output: Path, labels: Path, template: str) -> None:
    """Run `kdpl eval` on the labels of the demo's new photos."""
    from kdpl.photos import evaluate

    flags = [str(output), "--labels", str(labels), "--sentence", template]
    about = "The demo has other photos from the same source, with labels:"
    print("", about, "", f"$ kdpl eval {shlex.join(flags)}", "", sep="\n", flush=True)
    evaluate.evaluate(evaluate.parse_args(flags), mistakes=False)


def refit_main(argv: Sequence[str] | None = None) -> int:
    """Run `kdpl refit`; return its exit status."""
    parser = argparse.ArgumentParser(
        prog="kdpl refit",
        description="Fit other names, more names or corrected labels to the photos of a fit, from their features.",
    )
    add = parser.add_argument
    add("fit", metavar="OUT", help="output folder of kdpl fit")
    add("names", metavar="names.txt", help="class names, one a line")
    add("-o", "--output", metavar="OUT2", help="folder to write to (default: OUT itself)")
    _add_common(parser)
    args = parser.parse_args(argv)
    return guarded(lambda: run_refit(args))


def run_refit(args: argparse.Namespace) -> int:
    """Refit as the command line asks; return the exit status."""
    start, output = time.perf_counter(), Path(args.output or args.fit)
    names = check(args)
    check_folder(output, FIT)
    if not (features := Path(args.fit, FEATURES)).is_file():
        raise ConfigError(f"'{features}' is missing: expected the output folder of `kdpl fit`.")
    with doing("Loading PyTorch", quiet=args.quiet):
        from kdpl.photos import fitting
    count = fitting.refit_in(Path(args.fit), output, args, names)
    print("", f"{count:,} photos, none of which was read, in {time.perf_counter() - start:.1f} s. Next:", "", sep="\n")
    print(f"  kdpl predict {output} PHOTOS")
    return 0
