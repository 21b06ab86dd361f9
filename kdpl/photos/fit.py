"""Learn from a folder of photos without labels: `kdpl fit PHOTOS names.txt -o OUT`, and `kdpl refit OUT other_names.txt`.

One pass over the photos computes the features of the frozen student and of the teacher, which OUT keeps. From them a head is
solved in closed form. On held-out photos it is compared with hand-written sentences, by agreement with the teacher, and the
better is what `kdpl predict OUT` uses. What can be checked cheaply is checked here, before PyTorch is imported.
"""

import argparse
import csv
import random
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from kdpl.common import exits
from kdpl.common.files import atomic_write
from kdpl.common.outputs import DEMO, FIT, check_folder, take_folder
from kdpl.common.safe_text import read_class_names
from kdpl.config.keys import ConfigError
from kdpl.photos.commands import FEATURES, add_clip_flags, check_photos, doing, guarded

if TYPE_CHECKING:
    from kdpl.datasets.emoji.plans import Scene

DEMO_OUT, DEMO_SET, TO_LEARN = "kdpl_demo", "meals", 20  # photos of each class


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
    _add_common(parser)
    args = parser.parse_args(argv)
    if args.demo and (args.photos or args.names):
        parser.error("--demo brings photos and names of its own: leave PHOTOS and names.txt out.")
    if not args.demo and not (args.photos and args.names and args.output):
        parser.error("expected PHOTOS, names.txt and -o OUT, or --demo.")
    return args


def _add_common(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--labels", metavar="FILE", help="learn these labels, too: labels.csv of the gallery, or columns path and label")
    add("--quiet", action="store_true", help="no progress")


def names_of(args: argparse.Namespace) -> list[str]:
    """Return the class names of the command line, of which there are several."""
    names = read_class_names(args.names)
    if len(names) == 1:
        raise ConfigError(f"'{args.names}' has one class name alone: give two or more, of what else the photos show.")
    return names


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run `kdpl fit`; return its exit status."""
    args, start, new = parse_args(argv), time.perf_counter(), "PHOTOS"
    if args.demo:
        demo = Path(args.output or DEMO_OUT)
        check_folder(demo, DEMO)
        check_folder(demo / "prompts", FIT)
        with doing("Drawing photos of things that the small model has not seen", quiet=args.quiet):
            args.photos, args.names = map(str, write_demo(demo))
        args.student, args.teacher, args.output = "emoji_student", args.teacher or "emoji_teacher", demo / "prompts"
        new = str(demo / "new_photos")
    check_photos(args.photos, args.template)
    names = names_of(args)
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
    """Print what `kdpl eval` says with the labels of the demo's new photos."""
    from kdpl.photos import evaluate

    flags = [str(output), "--labels", str(labels), "--sentence", template]
    about = "The demo has other photos from the same source, with labels:"
    print("", about, "", f"$ kdpl eval {shlex.join(flags)}", "", sep="\n", flush=True)
    evaluate.print_accuracy(evaluate.parse_args(flags))


@guarded
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
    start, output, names = time.perf_counter(), Path(args.output or args.fit), names_of(args)
    check_folder(output, FIT)
    if not (features := Path(args.fit, FEATURES)).is_file():
        raise ConfigError(f"'{features}' is missing: expected the output folder of `kdpl fit`.")
    with doing("Loading PyTorch", quiet=args.quiet):
        from kdpl.photos import fitting
    count = fitting.refit_in(Path(args.fit), output, args, names)
    print("", f"{count:,} photos, none of which was read, in {time.perf_counter() - start:.1f} s. Next:", "", sep="\n")
    print(f"  kdpl predict {output} PHOTOS")
    return 0


# --------------------------------------------------------- the demo: scenes by an artist whom the embedded student has not seen


def write_scenes(folder: Path, scenes: Sequence["Scene"]) -> dict[str, str]:
    """Write scenes in random order, under names that say nothing, unless they are there; return the truth by path."""
    from kdpl.datasets.emoji.plans import draw

    scenes = list(scenes)
    random.Random(0).shuffle(scenes)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"IMG_{number:04d}.png" for number in range(1, len(scenes) + 1)]
    if not all(path.is_file() for path in paths):
        for path, pixels in zip(paths, draw(scenes), strict=True):
            Image.fromarray(pixels).save(path)
    return {str(path): scene.classname for path, scene in zip(paths, scenes, strict=True)}


def write_demo(output: Path) -> tuple[Path, Path]:
    """Write photos to learn from, new ones with their labels in `labels.csv`, and names; return photos and names."""
    from kdpl.datasets.emoji.plans import class_names, scenes_of

    scenes = [scene for scene in scenes_of(f"photos_{DEMO_SET}") if scene.number < TO_LEARN]
    take_folder(output, DEMO)
    names, labels = output / "names.txt", output / "labels.csv"
    write_scenes(output / "photos", [scene for scene in scenes if scene.split == "train"])
    truth = write_scenes(output / "new_photos", [scene for scene in scenes if scene.split == "test"])
    if not names.is_file():  # somebody may have changed them, or corrected labels
        with atomic_write(names, "w") as file:
            file.write("\n".join([*class_names(DEMO_SET), ""]))
    if not labels.is_file():
        with atomic_write(labels, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *truth.items()])
    return output / "photos", names
