"""The command `predict.py`: classify images with learned prompts.

It prints one line per image: the path, then class names with their probabilities, separated by tabs. Unreadable images are
listed on stderr and left out; the exit status (kdpl/common/exits.py) is then 5, and 0 if all images were read.
"""

import argparse
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.classifier.predictions import predict
from kdpl.common import exits
from kdpl.common.class_names import read_class_names
from kdpl.common.exits import report
from kdpl.common.messages import short_reason
from kdpl.config.command_line import add_learner_flag

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

_AT_LEAST = {"top": 1, "batch_size": 1, "workers": 0}


class InputError(ValueError):
    """A flag or an image path cannot be used."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="predict.py",
        description="Classify images with learned prompts.",
        epilog="Exit status: 0, all images were read; 5, some could not be read and are listed on stderr; "
        "2, the command or a file is wrong; 1, another failure, such as a full disk.",
    )
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="image files, and folders of images at any depth")
    parser.add_argument("--prompts", required=True, metavar="OUT", help="output folder of a training, or prompts.safetensors")
    parser.add_argument("--classnames", metavar="FILE", help="other class names, one per line (default: those of the training)")
    parser.add_argument("--top", type=int, default=5, metavar="K", help="names per image (default: 5)")
    parser.add_argument("--csv", metavar="FILE", help="also write a table: path, name, probability, name_2, ...")
    parser.add_argument("--json", metavar="FILE", help="also write one JSON object per line: path, names, probabilities")
    parser.add_argument("--html", metavar="FILE", help="also write a gallery of the images, to sort and to filter")
    parser.add_argument("--batch-size", type=int, default=64, metavar="B", help="images per batch (default: 64)")
    workers = min(8, os.cpu_count() or 1)
    parser.add_argument(
        "--workers", type=int, default=workers, metavar="N", help=f"threads that read images (default: {workers})"
    )
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: a GPU if there is one)")
    parser.add_argument("--backbone", metavar="CLIP", help="the training's CLIP, if it has another name or path here")
    add_learner_flag(parser)
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> list[str]:
    """Check the arguments before anything is loaded, and return the distinct paths of the images."""
    from kdpl.common.images import find_images

    for name, least in _AT_LEAST.items():
        if getattr(args, name) < least:
            raise InputError(f"--{name.replace('_', '-')} is {getattr(args, name)}, expected at least {least}.")
    missing = [path for path in args.images if not os.path.exists(path)]
    if missing:
        shown = ", ".join(f"'{path}'" for path in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(f"There is no {shown} in '{os.getcwd()}': expected image files or folders of images.")
    images: dict[str, None] = {}
    for path in args.images:
        if not os.path.isdir(path):
            images[path] = None
            continue
        found, others = find_images(path)
        if not found:
            raise InputError(
                f"'{path}' holds no images, at any depth ({others:,} other files). "
                "Name files one by one if their suffix is unusual."
            )
        images |= dict.fromkeys(map(str, found))
    outputs = [Path(path).absolute() for path in (args.csv, args.json, args.html) if path]
    for path in outputs:
        if path.is_dir():
            raise InputError(f"The output '{path}' is a folder: expected the path of a file.")
        if outputs.count(path) > 1:
            raise InputError(f"'{path}' is given for two outputs: --csv, --json and --html need a file each.")
    if taken := {str(path) for path in outputs} & {os.path.abspath(path) for path in images}:
        raise InputError(f"The output '{min(taken)}' is one of the images: choose another path for it.")
    return list(images)


def load(args: argparse.Namespace) -> "Classifier":
    """Return the classifier with the requested class names.

    Raises:
        ValueError, OSError: the prompts, the names or the device cannot be used.
    """
    names = read_class_names(args.classnames) if args.classnames else None
    if args.learner:
        from kdpl.trainers import load_learners

        load_learners(args.learner)

    import torch

    from kdpl.classifier.classifier import load

    if args.device:
        try:
            torch.empty(0, device=args.device)
        except (RuntimeError, AssertionError) as error:
            raise InputError(
                f"--device '{args.device}' cannot be used ({short_reason(error)}): expected a device of this machine, such as "
                "cpu, cuda or cuda:1."
            ) from None
    classifier = load(args.prompts, args.device, args.backbone)
    if names:
        classifier.classnames = names
    if not classifier.classnames:
        raise InputError("The prompts were learned without class names: give yours, one per line, as --classnames FILE.")
    return classifier


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # for names and paths that the terminal cannot show
    try:
        images = check(args)
        classifier = load(args)
    except (ValueError, OSError, ImportError) as error:
        return report(error, exits.BAD_INPUT)
    start = time.perf_counter()
    try:
        unread = predict(classifier, images, args)
    except ValueError as error:  # a class name too long for the text tower
        return report(error, exits.BAD_INPUT)
    except OSError as error:
        return report(error, exits.FAILED)
    except KeyboardInterrupt:
        print("stopped: no file was written", file=sys.stderr)
        return 128 + signal.SIGINT  # the convention of shells
    seconds = time.perf_counter() - start
    print(
        f"{len(images) - unread:,} images in {seconds:.1f} s, {classifier.seconds['model'] / seconds:.0%} of it in the model; "
        f"{unread:,} could not be read",
        file=sys.stderr,
    )
    return exits.SOME_UNREAD if unread else 0


if __name__ == "__main__":
    sys.exit(main())
