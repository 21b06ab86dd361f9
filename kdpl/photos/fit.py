"""Learn from a folder of photos without labels: `kdpl fit PHOTOS names.txt -o OUT`.

One pass over the photos computes the features of the frozen student and of the teacher. From them class vectors and prompts are
learned. On held-out photos they are compared with hand-written sentences, by agreement with the teacher, and the best is what
`kdpl predict OUT` uses.
"""

import argparse
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from kdpl.common import exits, lock
from kdpl.common.class_names import read_class_names
from kdpl.common.outputs import FIT, check_folder, take_folder
from kdpl.config.keys import ConfigError
from kdpl.config.manifest import OtherRunError
from kdpl.config.teachers import one_teacher
from kdpl.photos import models
from kdpl.photos.waiting import Doing
from kdpl.text.templates import DEFAULT

DEMO_OUT = "kdpl_demo"
OTHER_OUT = "Choose another output folder (-o), or remove this one."


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl fit",
        usage="%(prog)s PHOTOS names.txt -o OUT [options]",
        description="Learn to name your photos from a stronger CLIP, without labels, and see whether that helped.",
    )
    add = parser.add_argument
    add("photos", nargs="?", metavar="PHOTOS", help="folder of photos, at any depth")
    add("names", nargs="?", metavar="names.txt", help="class names, one a line")
    add("-o", "--output", metavar="OUT", help="folder for what is learned, card and logs")
    add("--demo", action="store_true", help=f"photos and models that come with kdpl (OUT: {DEMO_OUT})")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick", help="fewer photos, class vectors alone")
    effort.add_argument("--best", dest="effort", action="store_const", const="best", help="PromptSRC, too, on augmented photos")
    minutes = ", ".join(f"{n:g} with a {'GPU' if kind == 'cuda' else 'CPU'}" for kind, n in models.MINUTES.items())
    add("--minutes", type=float, metavar="M", help=f"that the models may look at photos (default: {minutes})")
    add("--student", metavar="CLIP", help=f"the CLIP that is used (default: {models.STUDENT})")
    teachers = f"{models.ON_GPU}, without a GPU {models.ON_CPU}"
    add("--teacher", metavar="CLIP", help=f"the CLIP it learns from (default: {teachers})")
    add("--variant", default="", metavar="NAME", help="learn this alone: TaskRes (class vectors), CSC, CoOp, VPT, MaPLe, ...")
    add("--template", default=DEFAULT, metavar="S", help=f"the teacher's sentence (default: '{DEFAULT}')")
    add("--sentence", action="append", default=[], metavar="S", help="compare this sentence too; may be repeated")
    add("--reject", action="store_true", help="needed with a single class name: predictions are 'it' or 'none of these'")
    add("--labels", metavar="FILE", help="learn these labels, too: labels.csv of the gallery, or columns path and label")
    add("--seed", type=int, default=1, help="of all random choices (default: 1)")
    add("--quiet", action="store_true", help="no progress")
    args = parser.parse_args(argv)
    args.effort = args.effort or "normal"
    if args.demo and (args.photos or args.names):
        parser.error("--demo brings photos and names of its own: leave PHOTOS and names.txt out.")
    if not args.demo and not (args.photos and args.names and args.output):
        parser.error("expected PHOTOS, names.txt and -o OUT, or --demo.")
    return args


def prepare(args: argparse.Namespace):
    """Return the plan, after everything that can be checked is checked.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    for sentence in (args.template, *args.sentence):
        if sentence.count("{}") != 1:
            raise ConfigError(f"The sentence '{sentence}' must hold one '{{}}' for the class name, as '{DEFAULT}' does.")
    if args.minutes is not None and not 0 < args.minutes < float("inf"):
        raise ConfigError(f"--minutes is {args.minutes:g}, expected a time above 0.")
    if args.demo:
        with Doing("Drawing photos of things that the small model has not seen", quiet=args.quiet):
            from kdpl.photos.demo import write_demo

            output = Path(args.output or DEMO_OUT)
            args.photos, args.names = write_demo(output)
        args.student, args.teacher = args.student or "emoji_student", args.teacher or "emoji_teacher"
        args.output = output / "prompts"
    check_folder(args.output, FIT, args.photos)
    with Doing(f"Looking through '{args.photos}'", quiet=args.quiet):
        args.minutes = args.minutes or models.MINUTES[models.device_type()]
        args.student = args.student or models.STUDENT
        args.teacher = one_teacher(args.teacher or models.default_teacher(), "--teacher")
        names = read_class_names(args.names)

        from kdpl.bundle.learned import refuse_doubles
        from kdpl.photos.fitting.plan import make_plan

        refuse_doubles(names, f"'{args.names}'")
        if len(names) == 1 and args.labels:
            raise ConfigError("--labels needs several class names: with one alone the names of a vocabulary are learned from.")
        if len(names) == 1 and not args.reject:
            raise ConfigError(
                f"'{args.names}' has one class name alone, '{names[0]}', and every photo would be it: give more names, or "
                "--reject, by which photos are 'none of these'."
            )
        return make_plan(args, names)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    start = time.perf_counter()
    try:
        plan = prepare(args)
        decided = plan.decided()
        lock.occupy(take_folder(plan.output, FIT))

        from kdpl.photos.fitting import run

        run.say(plan)
        fit = run.Fit(plan, args.quiet, decided)
        fit.load()
        fit.look()
        fit.learn()
    except OtherRunError as error:
        listed = str(error).rpartition("\n")[0]  # then come the flags of train.py
        return exits.report(OtherRunError("\n".join([listed, OTHER_OUT])), exits.BAD_INPUT)
    except lock.OccupiedError as error:
        return exits.report(error, exits.OCCUPIED)
    except FloatingPointError as error:
        return exits.report(error, exits.DIVERGED)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    try:
        fit.finish(args.sentence)
    except (ValueError, OSError) as error:
        return exits.report(error, exits.FAILED)
    new = "PHOTOS"
    if args.demo:
        new = args.photos.parent / "new_photos"
        show_accuracy(plan, args.photos.parent / "labels.csv")
    print("", f"Done in {(time.perf_counter() - start) / 60:.1f} min. Next:", "", sep="\n")
    print(f"  kdpl predict {plan.output} {new} --csv predictions.csv --html predictions.html")
    return exits.SOME_UNREAD if fit.unreadable else 0


def show_accuracy(plan, labels: Path) -> None:
    """Run `kdpl eval` on the labels of the demo's new photos."""
    from kdpl.photos.evaluate import main as evaluate

    flags = [str(plan.output), "--labels", str(labels), "--sentence", plan.template, "--mistakes", "0"]
    about = "The demo has other photos from the same source, with labels:"
    print("", about, "", f"$ kdpl eval {shlex.join(flags)}", "", sep="\n", flush=True)
    evaluate(flags)
