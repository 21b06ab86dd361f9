"""The command `kdpl predict`, or `predict.py`: classify images with learned prompts.

It prints one line per image: the path, then class names with their probabilities, separated by tabs. Unreadable images are
listed on stderr and left out; the exit status (kdpl/common/exits.py) is then 5, and 0 if all images were read.
"""

import argparse
import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kdpl.classifier.predictions.files import Found, InputError, find
from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.common.exits import report
from kdpl.common.images import media_line
from kdpl.common.outputs import SORTED, check_files, check_folder
from kdpl.common.sources import is_inside
from kdpl.photos.commands import add_prompt_flags, check_prompts, classifier_of
from kdpl.photos.evaluate import GIVEN, TEACHER, read_record

MAX_PIXELS = 178_956_970  # Pillow's own limit
_AT_LEAST = {"top": 1, "batch_size": 1, "workers": 0, "max_pixels": 1}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    workers = min(8, os.cpu_count() or 1)
    parser = argparse.ArgumentParser(
        usage="%(prog)s OUT IMAGE [IMAGE ...] [options]",
        description="Classify images with learned prompts. OUT is the output folder of a training.",
        epilog="Exit status: 0, all images were read; 5, some could not be read and are listed on stderr; "
        "2, the command or a file is wrong; 1, another failure, such as a full disk.",
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="IMAGE", help="image files, folders of images, - for a list of paths on stdin")
    add("--prompts", metavar="OUT", help="OUT as a flag: output folder of a training, or prompts.safetensors")
    add("--top", type=int, default=5, metavar="K", help="names per image (default: 5)")
    add("--csv", metavar="FILE", help="also write a table: path, name, probability, name_2, ...")
    add("--json", metavar="FILE", help="also write one JSON object per line: path, names, probabilities")
    add("--html", metavar="FILE", help="also write a gallery of the images, to check and to correct")
    add("--copy-to", metavar="DIR", help="also copy the photos into folders by class")
    add("--link-to", metavar="DIR", help="also link the photos into folders by class")
    add("--quiet", action="store_true", help="print neither lines nor progress; errors and the summary remain")
    add("--batch-size", type=int, default=64, metavar="B", help="images per batch (default: 64)")
    add("--workers", type=int, default=workers, metavar="N", help=f"threads that read images (default: {workers})")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add_prompt_flags(parser)
    add("--no-cache", action="store_true", help="neither read nor write the cache of image features")
    add("--max-pixels", type=int, default=MAX_PIXELS, metavar="N", help=f"largest image (default: {MAX_PIXELS:,})")
    args = parser.parse_args(argv)
    if not args.prompts:
        args.prompts, *args.images = args.images
        if not args.images:
            parser.error(f"there is no image after OUT '{args.prompts}': name image files or folders of images.")
    return args


def check(args: argparse.Namespace) -> Found:
    """Check the arguments before anything is loaded, and return the distinct images."""
    for name, least in _AT_LEAST.items():
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least {least}.")
    check_prompts(args.prompts, args.images)
    found = find(args.images)
    check_files([args.csv, args.json, args.html], [*found.images, args.classnames, *args.learner])
    if (args.copy_to or args.link_to) and any(map(is_inside, found.images)):
        raise InputError("--copy-to and --link-to are for files: photos in shards and data sets stay where they are.")
    for folder in filter(None, (args.copy_to, args.link_to)):
        check_folder(folder, SORTED)
        for photos in filter(os.path.isdir, args.images):
            check_folder(folder, SORTED, photos)
    return found


@contextmanager
def limited_pixels(most: int) -> Iterator[None]:
    """Refuse images of more pixels inside."""
    from PIL import Image

    before = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        Image.MAX_IMAGE_PIXELS = max(1, most // 2)  # Pillow refuses twice as many, and warns below
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    with limited_pixels(args.max_pixels):
        return predict(args)


def predict(args: argparse.Namespace) -> int:
    """Predict as the command line asks; return the exit status."""
    try:
        found = check(args)
        classifier = classifier_of(args, args.device)

        from kdpl.classifier.predictions.run import Run

        run = Run(
            classifier, args, found, read_record(args.prompts, TEACHER) if args.html else {}, read_record(args.prompts, GIVEN)
        )
    except (ValueError, OSError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    for reason in found.unreadable.values():
        print(f"left out: {reason}", file=sys.stderr)
    start = time.perf_counter()
    try:
        run()
    except ValueError as error:  # a class name too long for the text tower
        return report(error, exits.BAD_INPUT)
    except BrokenPipeError:  # the reader of a FIFO or of the standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        return report(error, exits.FAILED)
    for line in run.summary(time.perf_counter() - start, media_line(found.media)):
        print(line, file=sys.stderr)
    return exits.SOME_UNREAD if run.unread else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
