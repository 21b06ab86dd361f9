"""The prompts that a command uses: the flags of `kdpl predict`, `eval` and `export`, and the classifier they ask for."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdpl.classifier.predictions.files import InputError
from kdpl.common.class_names import REJECTED, read_class_names
from kdpl.common.messages import short_reason
from kdpl.common.outputs import BUNDLE
from kdpl.config.command_line import add_learner_flag
from kdpl.photos.waiting import doing

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

HUB = "hf-hub:"


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
        InputError: the message names the file that is expected.
    """
    if prompts.startswith(HUB) or _has_prompts(prompts):
        return
    swapped = next((other for other in others if _has_prompts(other)), None)
    hint = f" '{swapped}' has prompts: it comes first." if swapped else " A fit or a training writes it when it ends."
    file = Path(prompts, BUNDLE) if os.path.isdir(prompts) else prompts
    raise InputError(f"There is no '{file}', expected OUT, the output folder of a fit or a training.{hint}")


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
        raise InputError("The prompts were learned without class names: give yours, one per line, as --classnames FILE.")
    if len(names) == 1 and not args.reject:
        raise InputError(
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
        raise InputError(
            f"--device '{device}' cannot be used ({short_reason(error)}): expected a device of this machine, such as "
            "cpu, cuda or cuda:1."
        ) from None
