"""Learn from a folder of photos without labels: `kdpl fit PHOTOS names.txt -o OUT`.

One pass over the photos computes the features of the frozen student and of the teacher, which OUT keeps. From them a head is
solved in closed form. On held-out photos it is compared with hand-written sentences, by agreement with the teacher, and the
better is what `kdpl predict OUT` uses. What can be checked cheaply is checked here, before PyTorch is imported.
"""

import argparse
import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from kdpl.common import exits, lock
from kdpl.common.class_names import read_class_names
from kdpl.common.files import remove_parts
from kdpl.common.outputs import DEMO, FIT, check_folder, take_folder
from kdpl.config.keys import ConfigError
from kdpl.config.teachers import one_teacher
from kdpl.photos import models
from kdpl.photos.waiting import doing

DEFAULT = "a photo of a {}."
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
    add("--minutes", type=float, metavar="M", help="that the models may look at photos (default: no limit)")
    add("--student", default=models.STUDENT, metavar="CLIP", help=f"the CLIP that is used (default: {models.STUDENT})")
    teachers = f"{models.ON_GPU}, without a GPU {models.ON_CPU}"
    add("--teacher", metavar="CLIP", help=f"the CLIP it learns from (default: {teachers})")
    trained = parser.add_mutually_exclusive_group()
    trained.add_argument("--learn", default="", metavar="NAME", help="also train TaskRes (class vectors), CSC, CoOp, VPT, ...")
    trained.add_argument("--best", action="store_true", help="also train class vectors and prompts, and compare them all")
    add("--template", default=DEFAULT, metavar="S", help=f"the teacher's sentence (default: '{DEFAULT}')")
    add("--sentence", action="append", default=[], metavar="S", help="compare this sentence too; may be repeated")
    add("--labels", metavar="FILE", help="learn these labels, too: labels.csv of the gallery, or columns path and label")
    add("--seed", type=int, default=1, help="of the photos that are held out (default: 1)")
    add("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    if args.demo and (args.photos or args.names):
        parser.error("--demo brings photos and names of its own: leave PHOTOS and names.txt out.")
    if not args.demo and not (args.photos and args.names and args.output):
        parser.error("expected PHOTOS, names.txt and -o OUT, or --demo.")
    return args


def check(args: argparse.Namespace) -> list[str]:
    """Return the class names, after everything that needs no model and no photo is checked.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    for sentence in (args.template, *args.sentence):
        if sentence.count("{}") != 1:
            raise ConfigError(f"The sentence '{sentence}' must hold one '{{}}' for the class name, as '{DEFAULT}' does.")
    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise ConfigError(f"--minutes is {args.minutes:g}, expected a time above 0.")
    photos, names = Path(args.photos), Path(args.names)
    if names.is_dir() and photos.is_file():
        raise ConfigError(f"PHOTOS '{photos}' is a file and names.txt '{names}' a folder: give the folder first.")
    if not photos.is_dir():
        raise ConfigError(f"PHOTOS '{photos}' is not a folder: expected the folder with your photos.")
    found = read_class_names(names)
    if len(found) == 1 and args.labels:
        raise ConfigError("--labels needs several class names: with one alone the names of a vocabulary are learned from.")
    if args.labels and not Path(args.labels).is_file():
        raise ConfigError(f"There is no file of labels '{args.labels}'.")
    check_folder(args.output, FIT, photos)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    return guarded(lambda: run(args))


def guarded(command: Callable[[], int]) -> int:
    """Return the exit status of `kdpl fit` or `refit`: errors are one message."""
    try:
        return command()
    except lock.OccupiedError as error:
        return exits.report(error, exits.OCCUPIED)
    except FloatingPointError as error:
        return exits.report(error, exits.DIVERGED)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)


def run(args: argparse.Namespace) -> int:
    """Fit as the command line asks; return the exit status."""
    start, demo = time.perf_counter(), None
    if args.demo:
        demo = Path(args.output or DEMO_OUT)
        check_folder(demo, DEMO)
        check_folder(demo / "prompts", FIT)
        with doing("Drawing photos of things that the small model has not seen", quiet=args.quiet):
            from kdpl.photos.demo import write_demo

            args.photos, args.names = write_demo(demo)
        args.student, args.teacher, args.output = "emoji_student", args.teacher or "emoji_teacher", demo / "prompts"
    names = check(args)
    args.output = Path(args.output)
    with doing("Loading PyTorch", quiet=args.quiet):
        from kdpl.photos import fitting

        args.teacher = one_teacher(args.teacher or models.default_teacher(), "--teacher")
    request = fitting.prepare(args, names)
    fitting.say(request)
    take_folder(args.output, FIT)
    lock.occupy(args.output)
    remove_parts(args.output)
    unread = fitting.fit(request)
    new = "PHOTOS"
    if demo:
        new = demo / "new_photos"
        show_accuracy(args.output, demo / "labels.csv", args.template)
    print("", f"Done in {(time.perf_counter() - start) / 60:.1f} min. Next:", "", sep="\n")
    print(f"  kdpl predict {args.output} {new} --csv predictions.csv --html predictions.html")
    print(f"  kdpl open {args.output}                   sort them in the browser, and change names while looking")
    print(f"  kdpl refit {args.output} names.txt      other names for the same photos, in seconds")
    return exits.SOME_UNREAD if unread else 0


def show_accuracy(output: Path, labels: Path, template: str) -> None:
    """Run `kdpl eval` on the labels of the demo's new photos."""
    from kdpl.photos.evaluate import main as evaluate

    flags = [str(output), "--labels", str(labels), "--sentence", template, "--mistakes", "0"]
    about = "The demo has other photos from the same source, with labels:"
    print("", about, "", f"$ kdpl eval {shlex.join(flags)}", "", sep="\n", flush=True)
    evaluate(flags)
