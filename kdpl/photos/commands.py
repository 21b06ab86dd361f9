"""What the commands for photos share: the CLIPs that suit this machine, flags, the classifier of OUT, progress and errors."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
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
ON_CPU = "ViT-L-14:dfn2b"  # two cores look at a thousand photos in 6 (with bf16) to 11 minutes: benchmarks/fit.py --towers
TEMPLATE = "a photo of a {}."
HUB = "hf-hub:"
FEATURES = "features.safetensors"  # of the photos, in the output folder of a fit


def doing(what: str, total: int = 0, unit: str = "", quiet: bool = False) -> tqdm:
    """Print on stderr what is being done, so that stdout holds results alone; return a bar, shown if there is a total."""
    if not quiet:
        print(f"{what} ...", file=sys.stderr, flush=True)
    terminal = sys.stderr.isatty()
    every = 0.1 if terminal else 6.0
    return tqdm(total=total, unit=unit, desc=what, disable=quiet or not total, mininterval=every, leave=not terminal)


def guarded(command: Callable[[], int]) -> int:
    """Return the exit status of a command whose errors are one message."""
    try:
        return command()
    except FloatingPointError as error:
        return exits.report(error, exits.DIVERGED)
    except (ValueError, OSError, KeyError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)


# ------------------------------------------------------------------------------------------------------------------ CLIPs


def add_clip_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of the commands that look at photos with both CLIPs."""
    add = parser.add_argument
    add("--student", default=STUDENT, metavar="CLIP", help=f"the CLIP that is used (default: {STUDENT})")
    add_teacher_flags(parser, "the CLIP it learns from")


def add_teacher_flags(parser: argparse.ArgumentParser, about: str) -> None:
    default = f"{ON_GPU}, without a GPU {ON_CPU}"
    parser.add_argument("--teacher", metavar="CLIP", help=f"{about} (default: {default})")
    parser.add_argument("--template", default=TEMPLATE, metavar="S", help=f"the teacher's sentence (default: '{TEMPLATE}')")


def check_sentences(*sentences: str) -> None:
    """Refuse sentences without a place for the name."""
    for sentence in sentences:
        if sentence.count("{}") != 1:
            raise ConfigError(f"The sentence '{sentence}' must hold one '{{}}' for the class name, as '{TEMPLATE}' does.")


def check_photos(folder: str) -> None:
    """Refuse what is neither a folder nor another source of photos."""
    if not (os.path.isdir(folder) or is_source(folder)):
        raise ConfigError(f"PHOTOS '{folder}' is not a folder: expected the folder with your photos.")


def device_type() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def teacher_name(given: str | None) -> str:
    """Return the teacher of --teacher, by default the one that suits this machine."""
    return given or (ON_GPU if device_type() == "cuda" else ON_CPU)


def with_size(name: str) -> str:
    """Return the name of a CLIP with the size of its weights, by its parameters unless they are here.

    Raises:
        ModelNameError: there is no such CLIP.
    """
    from kdpl.clip.loading import find_weights, outline_clip
    from kdpl.clip.names import resolve

    file = find_weights(name)
    if file is not None:
        return f"{name} ({file.stat().st_size / 1e6:,.0f} MB, here already)"
    each = 2 if resolve(name).kind == "openai" else 4  # bytes of a parameter, as published
    size = each * sum(p.numel() for p in outline_clip(name).model.parameters()) / 1e6
    return f"{name} ({size:,.0f} MB, will be downloaded)"


# ---------------------------------------------------------------------------------------------------------------- prompts


def add_prompt_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `classifier_of` reads; the prompts themselves are `args.prompts`."""
    add = parser.add_argument
    add("--classnames", metavar="FILE", help="other class names, one per line (default: those of the training)")
    add("--reject", action="store_true", help=f"say '{REJECTED}' of images that are none of the classes")
    add("--backbone", metavar="CLIP", help="the training's CLIP, if it has another name or path here")
    add_learner_flag(parser)


def check_prompts(prompts: str, others: Sequence[str] = ()) -> None:
    """Refuse prompts that are not there, before anything large is imported.

    Args:
        others: the other arguments: prompts among them were given in the wrong place.

    Raises:
        ConfigError: the message names the file that is expected.
    """
    if prompts.startswith(HUB) or _has_prompts(prompts):
        return
    swapped = next((other for other in others if _has_prompts(other)), None)
    hint = f" '{swapped}' has prompts: it comes first." if swapped else " A fit or a training writes it when it ends."
    file = Path(prompts, BUNDLE) if os.path.isdir(prompts) else prompts
    raise ConfigError(f"There is no '{file}', expected OUT, the output folder of a fit or a training.{hint}")


def _has_prompts(path: str) -> bool:
    return os.path.isfile(Path(path, BUNDLE)) or (os.path.isfile(path) and path.endswith(".safetensors"))


def classifier_of(args: argparse.Namespace, device: str | None = None) -> "Classifier":
    """Return the classifier with the requested class names.

    Raises:
        ValueError, OSError: the prompts, the names or the device cannot be used.
    """
    names = read_class_names(args.classnames) if args.classnames else None
    with doing(f"Loading '{args.prompts}' and its CLIP", quiet=getattr(args, "quiet", False)):
        load_learner(args)

        from kdpl.classifier.classifier import load

        _check_device(device)
        classifier = load(args.prompts, device, args.backbone)
        if names:
            classifier.classnames = names
    names = classifier.classnames
    if not names:
        raise ConfigError("The prompts were learned without class names: give yours, one per line, as --classnames FILE.")
    if len(names) == 1 and not args.reject:
        raise ConfigError(
            f"There is one class name alone, '{names[0]}', and every image would be it: give more names, or --reject, by "
            "which images are none of these (`kdpl fit` calibrates it)."
        )
    if line := classifier.same_names():
        print(f"Warning: {line}", file=sys.stderr)
    return classifier


def load_learner(args: argparse.Namespace) -> None:
    """Import the file of --learner, if one is given."""
    if args.learner:
        from kdpl.trainers import load_learners

        load_learners(args.learner)


def _check_device(device: str | None) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"--device '{device}' cannot be used ({short_reason(error)}): expected a device of this machine, such as "
            "cpu, cuda or cuda:1."
        ) from None
