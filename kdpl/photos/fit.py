"""Learn prompts from a folder of photos without labels: `kdpl fit PHOTOS names.txt -o OUT`.

Some photos are held out. On them the learned prompts are compared with hand-written sentences, by agreement with the teacher,
and the best is what `kdpl predict OUT` uses.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

from kdpl.common import exits, lock
from kdpl.common.class_names import read_class_names
from kdpl.common.exits import report
from kdpl.common.signals import stopping_at_once
from kdpl.config.choices import ConfigError
from kdpl.config.manifest import OtherRunError
from kdpl.config.teachers import one_teacher
from kdpl.text.templates import DEFAULT

STUDENT, TEACHER = "ViT-B/32", "ViT-H-14-quickgelu"
DEMO_OUT = "kdpl_demo"


def parse_args(argv: Sequence[str] | None = None, prog: str = "kdpl fit") -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} PHOTOS names.txt -o OUT [options]",
        description="Learn prompts for your photos from a stronger CLIP, without labels, and see whether that helped.",
    )
    add = parser.add_argument
    add("photos", nargs="?", metavar="PHOTOS", help="folder of photos, at any depth")
    add("names", nargs="?", metavar="names.txt", help="class names, one a line")
    add("-o", "--output", metavar="OUT", help="folder for prompts, card and log")
    add("--demo", action="store_true", help=f"photos and models that come with kdpl (OUT: {DEMO_OUT})")
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument("--quick", dest="effort", action="store_const", const="quick", help="few photos, one view of each")
    effort.add_argument("--best", dest="effort", action="store_const", const="best", help="PromptSRC, and more photos")
    add("--student", metavar="CLIP", help=f"the CLIP that is used (default: {STUDENT})")
    add("--teacher", metavar="CLIP", help=f"the CLIP it learns from (default: {TEACHER})")
    add("--variant", default="", metavar="NAME", help="CoOp, CoCoOp, VPT, MaPLe, PromptSRC, IVLP (default: CoOp)")
    add("--template", default=DEFAULT, metavar="S", help=f"the teacher's sentence (default: '{DEFAULT}')")
    add("--sentence", action="append", default=[], metavar="S", help="compare this sentence too; may be repeated")
    add("--reject", action="store_true", help="needed with a single class name: predictions are 'it' or 'none of these'")
    add("--seed", type=int, default=1, help="of all random choices (default: 1)")
    add("--quiet", action="store_true", help="no progress bar")
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
    from kdpl.classifier.texts import refuse_doubles
    from kdpl.photos.plan import make_plan

    for sentence in (args.template, *args.sentence):
        if sentence.count("{}") != 1:
            raise ConfigError(f"The sentence '{sentence}' must hold one '{{}}' for the class name, as '{DEFAULT}' does.")
    output = Path(args.output or DEMO_OUT)
    if args.demo:
        from kdpl.photos.demo import write_demo

        args.photos, args.names = write_demo(output)
        args.student, args.teacher = args.student or "emoji_student", args.teacher or "emoji_teacher"
        args.output = output / "prompts"
    args.student, args.teacher = args.student or STUDENT, one_teacher(args.teacher or TEACHER, "--teacher")
    names = read_class_names(args.names)
    refuse_doubles(names, f"'{args.names}'")
    if len(names) == 1 and not args.reject:
        raise ConfigError(
            f"'{args.names}' has one class name alone, '{names[0]}', and every photo would be it: give more names, or "
            "--reject, by which photos are 'none of these'."
        )
    return make_plan(args, names)


def main(argv: Sequence[str] | None = None, prog: str = "kdpl fit") -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv, prog)
    start = time.perf_counter()
    try:
        with stopping_at_once("before the training"):
            plan = prepare(args)
            plan.write()
            cfg = plan.cfg()

            from kdpl.photos.train import estimate, train

            say(plan, cfg, estimate(cfg, len(plan.train), len(plan.names)))
        trainer = train(cfg, args.quiet)
    except OtherRunError as error:
        listed = str(error).rpartition("\n")[0]  # then come the flags of train.py
        return report(OtherRunError(f"{listed}\nChoose another output folder (-o), or remove this one."), exits.BAD_INPUT)
    except lock.OccupiedError as error:
        return report(error, exits.OCCUPIED)
    except FloatingPointError as error:
        return report(error, exits.DIVERGED)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    try:
        from kdpl.photos.finish import finish

        with stopping_at_once("during the comparison"):
            finish(plan, trainer, args.sentence)
    except (ValueError, OSError) as error:
        return report(error, exits.FAILED)
    print(f"\nDone in {(time.perf_counter() - start) / 60:.1f} min. Next:\n")
    new = Path(args.photos).parent / "new_photos" if args.demo else "PHOTOS"
    print(f"  kdpl predict {plan.output} {new} --csv predictions.csv --html predictions.html")
    if args.demo:
        print(f"  kdpl eval {plan.output} --labels {Path(args.photos).parent / 'labels.csv'}")
    return exits.SOME_UNREAD if plan.skipped else 0


def say(plan, cfg, estimate: str) -> None:
    """Print what will be done."""
    for reason in list(plan.skipped.values())[:10]:
        print(f"left out: {reason}", file=sys.stderr)
    photos = f"{len(plan.train):,} to learn from, {len(plan.held_out):,} held out; {len(plan.skipped):,} could not be read"
    rows = [
        ["photos", photos],
        ["not read", plan.media],
        ["class names", f"{len(plan.names):,}: {', '.join(plan.names[:4])}{', ...' if len(plan.names) > 4 else ''}"],
        ["learns", f"{plan.learner} for {plan.student}, from {plan.teacher}, {cfg.OPTIM.MAX_EPOCH} epochs"],
        ["takes", f"{estimate}, and the time to load the models and to compare"],
        ["output", f"{plan.output}"],
    ]
    print(tabulate([row for row in rows if row[1]], tablefmt="plain"), flush=True)


if __name__ == "__main__":
    sys.exit(main())
