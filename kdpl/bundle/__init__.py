"""Learned prompts as one file that stands alone, `prompts.safetensors`: its format, and the card beside it (card.py).

The tensors are the learned parameters, under the names of the checkpoints. One entry of the file's metadata, `kdpl`, is JSON
with everything that is needed to use them: which CLIP they belong to, the variant's options, class names, how images are
prepared; and with the digest of all this and of the tensors. Nothing in it can run code.
"""

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdpl.bundle.card import CARD_NAME, model_card
from kdpl.clip.model import check_finite
from kdpl.clip.preprocessing import Preprocessing, checked_preprocessing
from kdpl.common.environment import VERSION
from kdpl.common.files import atomic_write
from kdpl.common.messages import did_you_mean, short_reason, shorten
from kdpl.common.outputs import BUNDLE as FILE_NAME
from kdpl.common.safe_text import UnsafeTextError, parse_json
from kdpl.students import Student

FORMAT = 2  # of the metadata; raised whenever an older version would misread it
KEY = "kdpl"
MOST_NAMES = 100_000  # ImageNet-21k has 21,841
LONGEST = 1_000  # characters of a name or a sentence; a text tower reads 77 tokens


class BundleError(ValueError):
    """A bundle of prompts is missing, damaged, or cannot be used."""


@dataclass(frozen=True)
class Decision:
    """How logits become an answer, as `kdpl fit` found out; all of it is optional.

    Attributes:
        sentences: hand-written sentences with `{}` for the name, whose mean takes the place of the learned prompts; empty: the
            learned prompts are used.
        temperature: probabilities are the softmax of the logits divided by it; None: none was fitted.
        background: names that are none of the classes; an image that is more like them is rejected.
        threshold: of `inside_score`; images below it are rejected. None: none was calibrated.
        classnames: the names that temperature and threshold were fitted for.
    """

    sentences: list[str] = field(default_factory=list)
    temperature: float | None = None
    background: list[str] = field(default_factory=list)
    threshold: float | None = None
    classnames: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        _check(self)
        for name, least, most in (("temperature", 1e-4, 1e4), ("threshold", -1e6, 1e6)):
            if (value := getattr(self, name)) is not None and not least <= value <= most:
                raise ValueError(f"'{name}' of the decision is {shorten(value)}, expected a number of {least:g} to {most:g}")
        if self.threshold is not None and not self.background:
            raise ValueError("the decision has a threshold and no background to compare with")

    def check_reject(self, classnames: Sequence[str]) -> None:
        """Refuse to reject images if there is no threshold for the class names.

        Raises:
            ValueError: there is none, or it was calibrated for other names.
        """
        if self.threshold is None:
            raise ValueError(
                "The prompts have no threshold to reject images by: `kdpl fit` calibrates one for variants whose text does not "
                "depend on the image, train.py does not. Leave `reject` (--reject) out, or fit again."
            )
        if sorted(self.classnames) != sorted(classnames):
            raise ValueError(
                "The threshold to reject images by was calibrated for other class names: use those of the fit, or fit again "
                "with these names (`kdpl fit`)."
            )


def inside_score(logits: Tensor, background: Tensor) -> Tensor:
    """Return how much more an image is like the class names than like other names: the difference of their energies `(B)`.

    It is the log of the odds that a softmax over both gives the class names.

    Args:
        logits: `(B, C)` over the class names.
        background: `(B, K)` over names that are none of the classes.
    """
    return torch.logsumexp(logits, -1) - torch.logsumexp(background, -1)


@dataclass(frozen=True)
class Bundle:
    """Learned prompts and what is needed to use them."""

    parameters: dict[str, Tensor]  # the learned parameters by name, fp32, on the CPU
    variant: str  # the student's class, such as "CoOp"
    trainer: str  # such as "KDPL_CoOp"
    backbone: str  # the CLIP's name, as MODEL.BACKBONE.NAME had it
    backbone_sha256: str  # `weights_digest` of the CLIP
    options: dict[str, Any]  # the variant's configuration node
    preprocessing: Preprocessing
    dataset: str
    template: str  # the data set's sentence, or in class-agnostic training the general one; by default the teacher's
    classnames: list[str]  # in the order of the labels; empty where they were not known
    teacher: str | None  # `kdpl.config.checks.teacher_label`
    class_agnostic: bool
    epoch: int  # number of epochs that the prompts were trained for
    results: list[dict[str, Any]]  # as `kdpl.training.results.write_results` has them; empty where nothing was measured
    config: str  # the whole configuration of the training, as YAML
    manifest: dict[str, Any] | None = None  # of the run, see kdpl/config/manifest.py
    kdpl_version: str = field(default_factory=lambda: VERSION)
    decision: Decision = field(default_factory=Decision)
    comparison: dict[str, Any] = field(default_factory=dict)  # the table of `kdpl fit`; empty where it was not run
    backbone_design: dict[str, str] = field(default_factory=dict)  # `design` of the CLIP; empty: not compared

    def __post_init__(self) -> None:
        _check(self)

    @property
    def student_class(self) -> type[Student]:
        """The class of the variant.

        Raises:
            BundleError: there is none of that name.
        """
        if self.variant not in Student.known:
            raise BundleError(
                f"The variant '{self.variant}' is not one of {', '.join(sorted(Student.known))}."
                f"{did_you_mean(self.variant, Student.known)} Name the file that defines it in "
                "--learner, import it, or use a newer kdpl."
            )
        return Student.known[self.variant]


def _check(record: Decision | Bundle) -> None:
    """Raise a ValueError if a field is of another type than its own, or holds texts that nobody writes."""
    for fact in fields(record):
        value, kinds = getattr(record, fact.name), get_args(fact.type) if isinstance(fact.type, UnionType) else (fact.type,)
        types = tuple((int, float) if kind is float else get_origin(kind) or kind for kind in kinds)
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in kinds):
            raise ValueError(f"'{fact.name}' is {shorten(value)}, expected {getattr(fact.type, '__name__', fact.type)}")
        if list[str] in kinds and (len(value) > MOST_NAMES or not all(isinstance(text, str) for text in value)):
            raise ValueError(f"'{fact.name}' has {len(value):,} entries, expected at most {MOST_NAMES:,} texts")
        for text in value if list[str] in kinds else ():
            if not text.replace("_", " ").strip() or len(text) > LONGEST:
                raise ValueError(f"'{fact.name}' holds {shorten(text)}, expected 1 to {LONGEST:,} characters")
    for sentence in record.sentences if isinstance(record, Decision) else [record.template] * bool(record.template):
        if sentence.count("{}") != 1:
            raise ValueError(f"the sentence {shorten(sentence)} does not hold one '{{}}' for the class name")


def write_bundle(folder: str | os.PathLike, bundle: Bundle) -> Path:
    """Write `prompts.safetensors` and `MODEL_CARD.md` into a folder, and return the path of the first.

    Raises:
        NotFiniteError: a parameter holds NaN or infinite values in fp32.
        ValueError: so does something else; JSON has no such number.
        OSError: they could not be written; what was there before is untouched.
    """
    content = asdict(bundle)
    tensors = {name: value.detach().float().cpu().contiguous().clone() for name, value in content.pop("parameters").items()}
    for name, value in tensors.items():
        check_finite(value, f"values of '{name}'")
    content = json.loads(json.dumps({"format": FORMAT, **content}, default=str, allow_nan=False))
    path = Path(folder, FILE_NAME)
    with atomic_write(path) as file:
        file.write(save(tensors, {KEY: json.dumps({**content, "digest": _digest(tensors, content)})}))
    with atomic_write(path.with_name(CARD_NAME), "w") as file:
        file.write(model_card(bundle))
    return path


def _digest(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """Return the digest of a bundle's tensors and of the rest of its metadata."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def read_bundle(path: str | os.PathLike) -> Bundle:
    """Read a bundle.

    Args:
        path: the file, or the output folder of a training that it lies in.

    Raises:
        BundleError: it is missing, truncated, not what its digest says, no such file, of a newer format, of an unknown
            variant, or holds values that are not finite; the message names the file and what to do.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise BundleError(
            f"There is no '{path}'. A training writes {FILE_NAME} into its output folder when it ends: the same command again "
            "finishes one that was stopped."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            parameters = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if KEY not in metadata:
            raise ValueError(f"it has no metadata '{KEY}', so that it was not written by a training of kdpl")
        bundle = _bundle(parse_json(metadata[KEY], "its metadata"), parameters)
        _ = bundle.student_class
    except BundleError as error:
        raise BundleError(f"'{path}' cannot be used: {error}") from None
    except (SafetensorError, OSError, UnsafeTextError, TypeError, ValueError) as error:
        unreadable = isinstance(error, (SafetensorError, OSError))
        reason = f"it is truncated or not of safetensors ({short_reason(error)})" if unreadable else str(error).rstrip(".")
        raise BundleError(
            f"'{path}' is not a bundle of prompts: {reason}. Copy it again, or run the training's command again: it writes it "
            "again."
        ) from None
    return bundle


def _bundle(content: Any, parameters: dict[str, Tensor]) -> Bundle:
    """Return a bundle from its metadata and tensors.

    Raises:
        BundleError: it was written by a newer version.
        ValueError: anything in it is not what was written, or cannot be used.
    """
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise ValueError("its metadata names no format")
    if content["format"] > FORMAT:
        raise BundleError(
            f"it is of format {content['format']}, and kdpl {VERSION} reads up to {FORMAT}. Install a newer kdpl, such as "
            f"{content.get('kdpl_version')}, which wrote it."
        )
    digest = content.pop("digest", None)
    if digest is None:
        print("Note: the prompts carry no digest, so that damage to them is not seen", file=sys.stderr)
    elif digest != _digest(parameters, content):
        raise ValueError("its tensors, names or settings are not those that were written: it is damaged or was edited")
    facts = {fact.name: content[fact.name] for fact in fields(Bundle) if fact.name in content}
    for name, made in (("preprocessing", checked_preprocessing), ("decision", lambda given: Decision(**given))):
        if not isinstance(given := facts.get(name, {}), dict):
            raise ValueError(f"'{name}' is {shorten(given)}, expected its values by their names")
        facts[name] = made(given)
    if wrong := [n for n, v in parameters.items() if not v.is_floating_point() or not torch.isfinite(v.float()).all()]:
        raise ValueError(f"{', '.join(wrong)} holds NaN, values that fp32 does not hold, or no floating-point numbers")
    return Bundle(parameters, **facts)
