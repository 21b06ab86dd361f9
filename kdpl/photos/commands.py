"""What the commands for photos share: the CLIPs that suit this machine, flags, the classifier of OUT, progress and errors."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from kdpl.common import exits
from kdpl.common.messages import short_reason
from kdpl.common.outputs import BUNDLE
from kdpl.common.safe_text import REJECTED, read_class_names
from kdpl.common.sources import is_source
from kdpl.config.command_line import add_learner_flag
from kdpl.config.keys import ConfigError

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

STUDENT = "ViT-B/32"
ON_GPU = "ViT-H-14-quickgelu"  # the paper's
ON_CPU = "ViT-L-14:dfn2b"  # two cores look at a thousand photos in 6 (with bf16) to 11 minutes: benchmarks/fit.py
TEMPLATE = "a photo of a {}."
HUB = "hf-hub:"
FEATURES = "features.safetensors"  # of the photos, in the output folder of a fit

Main = Callable[[Sequence[str] | None], int]


def doing(what: str, total: int = 0, unit: str = "", quiet: bool = False) -> AbstractContextManager:
    """Print on stderr what is being done, so that stdout holds results alone; of units return a bar."""
    if not quiet:
        print(f"{what} ...", file=sys.stderr, flush=True)
    terminal = sys.stderr.isatty()
    every = 0.1 if terminal else 6.0
    bar = {"total": total, "unit": unit, "desc": what, "mininterval": every, "leave": not terminal}
    return tqdm(**bar, disable=quiet or not total) if unit else nullcontext()


def guarded(main: Main) -> Main:
    """Make a command print an error as one message and return its exit status."""

    @wraps(main)
    def command(argv: Sequence[str] | None = None) -> int:
        try:
            return main(argv)
        except FloatingPointError as error:
            return exits.report(error, exits.DIVERGED)
        except (ValueError, OSError, KeyError, ImportError) as error:
            return exits.report(error, exits.BAD_INPUT)

    return command


# ------------------------------------------------------------------------------------------------------------------ CLIPs


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the commands that look at photos with both CLIPs."""
    parser.add_argument("--student", default=STUDENT, metavar="CLIP", help=f"the CLIP that is used (default: {STUDENT})")
    add_teacher_flags(parser, "the CLIP it learns from")


def add_teacher_flags(parser: argparse.ArgumentParser, about: str) -> None:
    default = f"{ON_GPU}, without a GPU {ON_CPU}"
    parser.add_argument("--teacher", metavar="CLIP", help=f"{about} (default: {default})")
    parser.add_argument("--template", default=TEMPLATE, metavar="S", help=f"the teacher's sentence (default: '{TEMPLATE}')")


def check_sentence(sentence: str) -> None:
    """Refuse a sentence without a place for the name."""
    if sentence.count("{}") != 1:
        raise ConfigError(f"The sentence '{sentence}' must hold one '{{}}' for the class name, as '{TEMPLATE}' does.")


def check_photos(folder: str, template: str) -> None:
    """Refuse what is neither a folder nor another source of photos, and a template that is none."""
    check_sentence(template)
    if not (os.path.isdir(folder) or is_source(folder)):
        raise ConfigError(f"PHOTOS '{folder}' is not a folder: expected the folder with your photos.")


def device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def teacher_name(given: str | None) -> str:
    """Return the teacher of --teacher, by default the one that suits this machine."""
    return given or (ON_GPU if device_type() == "cuda" else ON_CPU)


# ---------------------------------------------------------------------------------------------------------------- prompts


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `classifier_of` reads; the prompts themselves are `args.prompts`."""
    add = parser.add_argument
    add("--classnames", metavar="FILE", help="other class names, one per line (default: those of the training)")
    add("--reject", action="store_true", help=f"say '{REJECTED}' of images that are none of the classes")
    add("--backbone", metavar="CLIP", help="the training's CLIP, if it has another name or path here")
    add_learner_flag(parser)


def check_prompts(prompts: str) -> None:
    """Refuse prompts that are not there, before anything large is imported.

    Raises:
        ConfigError: the message names the file that is expected.
    """
    file = Path(prompts, BUNDLE) if os.path.isdir(prompts) else Path(prompts)
    if not prompts.startswith(HUB) and not (file.is_file() and file.suffix == ".safetensors"):
        raise ConfigError(
            f"There is no '{file}', expected OUT first, the output folder of a fit or a training, which writes {BUNDLE} when "
            "it ends."
        )


def classifier_of(args: argparse.Namespace, device: str | None = None) -> "Classifier":
    """Return the classifier with the requested class names.

    Raises:
        ValueError, OSError: the prompts, the names or the device cannot be used.
    """
    names = read_class_names(args.classnames) if args.classnames else None
    with doing(f"Loading '{args.prompts}' and its CLIP", quiet=getattr(args, "quiet", False)):
        load_learner(args)

        import torch

        from kdpl.classifier.classifier import load

        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            reason = short_reason(error)
            raise ConfigError(f"--device '{device}' cannot be used ({reason}): expected a device, cpu or cuda:1 say.") from None
        classifier = load(args.prompts, device, args.backbone)
        if names:
            classifier.classnames = names
    names = classifier.classnames
    if not names:
        raise ConfigError("The prompts were learned without class names: give yours, one per line, as --classnames FILE.")
    if len(names) == 1 and not args.reject:
        raise ConfigError(f"There is one class name alone, '{names[0]}', and every image would be it: give more, or --reject.")
    if line := classifier.same_names():
        print(f"Warning: {line}", file=sys.stderr)
    return classifier


def load_learner(args: argparse.Namespace) -> None:
    """Import the file of --learner, if one is given."""
    if args.learner:
        from kdpl.trainers import load_learners

        load_learners(args.learner)
