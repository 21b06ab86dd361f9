"""The command `kdpl predict`, or `predict.py`: classify images with learned prompts.

It prints one line per image: the path, then class names with their probabilities, separated by tabs. Unreadable images are
listed on stderr and left out; the exit status (kdpl/common/exits.py) is then 5, and 0 if all images were read.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence

from kdpl.classifier.folders import undo
from kdpl.classifier.predictions import Found, Run, find
from kdpl.classifier.watch import new_images
from kdpl.common import exits
from kdpl.common.command import run_command, saves_first, stop_signal
from kdpl.common.exits import report
from kdpl.common.outputs import SORTED, check_files, check_folder
from kdpl.common.sources import is_inside
from kdpl.photos.commands import add_prompt_flags, check_prompts, classifier_of
from kdpl.photos.evaluate import GIVEN, TEACHER, read_record

_AT_LEAST = {"top": 1, "batch_size": 1, "workers": 0}


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    workers = min(8, os.cpu_count() or 1)
    parser = argparse.ArgumentParser(
        usage="%(prog)s OUT IMAGE [IMAGE ...] [options]\n       %(prog)s --undo LOG",
        description="Classify images with learned prompts. OUT is the output folder of a training.",
        epilog="Exit status: 0, all images were read; 5, some could not be read and are listed on stderr; "
        "2, the command or a file is wrong; 1, another failure, such as a full disk.",
    )
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image files, folders of images, - for a list of paths on stdin")
    add("--prompts", metavar="OUT", help="OUT as a flag: output folder of a training, or prompts.safetensors")
    add("--top", type=int, default=5, metavar="K", help="names per image (default: 5)")
    add("--csv", metavar="FILE", help="also write a table: path, name, probability, name_2, ...")
    add("--json", metavar="FILE", help="also write one JSON object per line: path, names, probabilities")
    add("--html", metavar="FILE", help="also write a gallery of the images, to check and to correct")
    add("--copy-to", metavar="DIR", help="also copy the photos into folders by class")
    add("--link-to", metavar="DIR", help="also link the photos into folders by class")
    add("--move-to", metavar="DIR", help="move the photos into folders by class, with a log in DIR")
    add("--undo", metavar="LOG", help="move photos back to where --move-to DIR took them from; LOG is DIR or its moved.jsonl")
    add("--keywords", action="store_true", help="write the likeliest name as a keyword into an XMP sidecar of each photo")
    add("--watch", action="store_true", help="then name new images of the folders as they come, until Ctrl-C")
    add("--quiet", action="store_true", help="print neither lines nor progress; errors and the summary remain")
    add("--batch-size", type=int, default=64, metavar="B", help="images per batch (default: 64)")
    add("--workers", type=int, default=workers, metavar="N", help=f"threads that read images (default: {workers})")
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    add_prompt_flags(parser)
    add("--no-cache", action="store_true", help="neither read nor write the cache of image features")
    args = parser.parse_intermixed_args(argv)
    if args.undo:
        if args.images or args.prompts:
            parser.error("--undo LOG moves photos back and does nothing else.")
        return args
    if not args.prompts and args.images:
        args.prompts, *args.images = args.images
    if not args.images:
        parser.error(f"there is no image after OUT '{args.prompts or ''}': name image files or folders of images.")
    if args.move_to and (args.copy_to or args.link_to or args.html):
        parser.error("--move-to takes the photos away: leave --copy-to, --link-to and --html out.")
    if args.watch and (args.html or not all(map(os.path.isdir, args.images))):
        parser.error("--watch is for folders, and without --html, which is a page of all images.")
    return args


def check(args: argparse.Namespace) -> Found:
    """Check the arguments before anything is loaded, and return the distinct images."""
    for name, least in _AT_LEAST.items():
        if getattr(args, name) < least:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least {least}.")
    check_prompts(args.prompts)
    found = find(args.images, args.watch)
    check_files([args.csv, args.json, args.html], [*found.images, args.classnames, *args.learner])
    if (args.copy_to or args.link_to or args.move_to or args.keywords) and any(map(is_inside, found.images)):
        raise ValueError(
            "--copy-to, --link-to, --move-to and --keywords are for files: photos in shards and data sets stay where they are."
        )
    for folder in filter(None, (args.copy_to, args.link_to, args.move_to)):
        check_folder(folder, SORTED)
        for photos in filter(os.path.isdir, args.images):
            check_folder(folder, SORTED, photos)
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    return undo_moves(args.undo) if args.undo else predict(args)


def undo_moves(log: str) -> int:
    """Move photos back by a log; return the exit status."""
    try:
        back, left = undo(log)
    except (ValueError, OSError) as error:
        return report(error, exits.BAD_INPUT if isinstance(error, ValueError) else exits.FAILED)
    print(f"{back:,} photos are back where they were")
    for photo in left:
        print(f"left: '{photo}', since there is a file where it was", file=sys.stderr)
    return exits.FAILED if left else 0


def predict(args: argparse.Namespace) -> int:
    """Predict as the command line asks; return the exit status."""
    try:
        found = check(args)
        classifier = classifier_of(args, args.device)
        teacher = read_record(args.prompts, TEACHER) if args.html else {}
        run = Run(classifier, args, found, teacher, read_record(args.prompts, GIVEN))
    except (ValueError, OSError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    for reason in found.unreadable.values():
        print(f"left out: {reason}", file=sys.stderr)
    start = time.perf_counter()
    try:
        if args.watch:
            print(f"Watching {', '.join(args.images)}; Ctrl-C ends it", file=sys.stderr, flush=True)
            with saves_first():
                run(new_images(args.images, found.images, stop_signal))
        else:
            run(())
    except BrokenPipeError:  # the reader of a FIFO or of the standard output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:  # a class name too long for the text tower, a full disk
        return report(error, exits.BAD_INPUT if isinstance(error, ValueError) else exits.FAILED)
    for line in run.summary(time.perf_counter() - start):
        print(line, file=sys.stderr)
    return exits.SOME_UNREAD if run.unread or run.without_keyword else 0


if __name__ == "__main__":
    sys.exit(run_command(main))
