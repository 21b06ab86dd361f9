"""Learned prompts as one file that stands alone, and a card about it: `prompts.safetensors` and `MODEL_CARD.md`.

The tensors are the learned parameters, under the names of the checkpoints. One entry of the file's metadata, `kdpl`, is JSON
with everything that is needed to use them: which CLIP they belong to, the variant's options, class names, how images are
prepared. Nothing in it can run code.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdpl.bundle.card import CARD_NAME, FILE_NAME, model_card
from kdpl.bundle.decision import Decision
from kdpl.clip.inputs import Preprocessing, checked_preprocessing
from kdpl.clip.model import check_finite
from kdpl.common.environment import VERSION
from kdpl.common.files import atomic_write
from kdpl.common.messages import did_you_mean, short_reason, shorten
from kdpl.common.safe_text import UnsafeTextError, parse_json
from kdpl.config.teachers import MOST_SENTENCES
from kdpl.students import Student

FORMAT = 2  # of the metadata; raised whenever an older version would misread it
FORMAT_1 = 1  # written if version 0.1, which reads it, computes the same: learned prompts, and the shorter edge resized
KEY = "kdpl"
MOST_NAMES = 100_000  # ImageNet-21k has 21,841
LONGEST = 1_000  # characters of a name or a sentence; a text tower reads 77 tokens
OPTIONAL = ("decision", "comparison", "backbone_design")  # of the metadata: `kdpl fit` writes the first two, 0.2 not the third


class BundleError(ValueError):
    """A bundle of prompts is missing, damaged, or cannot be used."""


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
    teacher: str | None  # `kdpl.config.teachers.teacher_label`
    class_agnostic: bool
    epoch: int  # number of epochs that the prompts were trained for
    results: list[dict[str, Any]]  # as `kdpl.training.results.write_results` has them; empty where nothing was measured
    config: str  # the whole configuration of the training, as YAML
    manifest: dict[str, Any] | None = None  # of the run, see kdpl/config/manifest.py
    kdpl_version: str = field(default_factory=lambda: VERSION)
    decision: Decision = field(default_factory=Decision)
    comparison: dict[str, Any] = field(default_factory=dict)  # the table of `kdpl fit`; empty where it was not run
    backbone_design: dict[str, str] = field(default_factory=dict)  # `design` of the CLIP; empty in bundles of version 0.2

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
    if content["decision"] == asdict(Decision()):
        del content["decision"]
    for name in ("comparison", "backbone_design"):
        if not content[name]:
            del content[name]
    older = bundle.preprocessing.resize_mode == "shortest" and not bundle.decision.sentences
    number = FORMAT_1 if older else FORMAT
    path = Path(folder, FILE_NAME)
    with atomic_write(path) as file:
        file.write(save(tensors, {KEY: json.dumps({"format": number, **content}, default=str, allow_nan=False)}))
    with atomic_write(path.with_name(CARD_NAME), "w") as file:
        file.write(model_card(bundle))
    return path


def read_bundle(path: str | os.PathLike) -> Bundle:
    """Read a bundle.

    Args:
        path: the file, or the output folder of a training that it lies in.

    Raises:
        BundleError: it is missing, truncated, no such file, of a newer format, of an unknown variant, or holds values that
            are not finite; the message names the file and what to do.
    """
    path = Path(path)
    path = path / FILE_NAME if path.is_dir() else path
    if not path.is_file():
        raise BundleError(
            f"There is no '{path}'. A training writes {FILE_NAME} into its output folder when it ends: the same command again "
            "finishes one that was stopped, and adds the file to one of an older version."
        )
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            parameters = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise _broken(path, f"it is truncated or not of safetensors ({short_reason(error)})") from None
    try:
        content = parse_json(metadata[KEY], "its metadata")
    except KeyError:
        raise _broken(path, f"it has no metadata '{KEY}', so that it was not written by a training of kdpl") from None
    except UnsafeTextError as error:
        raise _broken(path, str(error).rstrip(".")) from None
    bundle = _bundle(path, content, parameters)
    if wrong := [n for n, v in parameters.items() if not v.is_floating_point() or not torch.isfinite(v.float()).all()]:
        raise _broken(path, f"{', '.join(wrong)} holds NaN, values that fp32 does not hold, or no floating-point numbers")
    try:
        _ = bundle.student_class
    except BundleError as error:
        raise BundleError(f"'{path}' cannot be used: {error}") from None
    return bundle


def _bundle(path: Path, content: Any, parameters: dict[str, Tensor]) -> Bundle:
    if not isinstance(content, dict) or not isinstance(content.get("format"), int):
        raise _broken(path, "its metadata names no format")
    if content["format"] > FORMAT:
        raise BundleError(
            f"'{path}' is of format {content['format']}, this kdpl ({VERSION}) reads up to {FORMAT}: install a newer "
            f"kdpl, such as {content.get('kdpl_version')}, which wrote it."
        )
    expected = {f.name: f.type for f in fields(Bundle) if f.name not in ("parameters", *OPTIONAL)}
    content = {"manifest": None, **content}  # which bundles of version 0.1 lack
    if missing := [name for name in expected if name not in content]:
        raise _broken(path, f"its metadata lacks {', '.join(missing)}")
    for name, wanted in expected.items():
        if name == "manifest" and content[name] is None:
            continue
        types = _TYPES[str(getattr(wanted, "__name__", wanted)).partition("[")[0]]
        if not isinstance(content[name], types) or (isinstance(content[name], bool) and types is int):
            raise _broken(
                path, f"'{name}' of its metadata is {shorten(content[name])}, expected {getattr(wanted, '__name__', wanted)}"
            )
    values = {name: content[name] for name in expected}
    comparison = content.get("comparison", {})
    try:
        check_names(content["classnames"])
        check_results(content["results"])
        check_comparison(comparison)
        preprocessing = checked_images(content["preprocessing"])
    except ValueError as error:
        raise _broken(path, str(error)) from None
    try:
        decision = checked_decision(content.get("decision"))
    except (TypeError, ValueError) as error:
        raise _broken(path, f"'decision' of its metadata cannot be used: {error}") from None
    if content["manifest"] is not None and not isinstance(content["manifest"].get("digest"), str):
        raise _broken(path, "'manifest' of its metadata has no digest")
    design = content.get("backbone_design", {})
    if not isinstance(design, dict) or not all(isinstance(value, str) for value in design.values()):
        raise _broken(path, f"'backbone_design' of its metadata is {shorten(design)}, expected texts by name")
    values |= {"preprocessing": preprocessing, "decision": decision, "comparison": comparison, "backbone_design": design}
    return Bundle(parameters, **values)


# JSON's types of the fields' types
_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "str | None": (str, type(None)),
    "bool": bool,
    "int": int,
    "dict": dict,
    "list": list,
    "Preprocessing": dict,
}


def _broken(path: Path, what: str) -> BundleError:
    return BundleError(
        f"'{path}' is not a bundle of prompts: {what}. Copy it again, or run the training's command again: it writes it again."
    )


def check_names(names: Sequence[Any], what: str = "class names") -> None:
    """Refuse names that no classifier can have.

    Raises:
        ValueError: too many, not text, empty, too long, or one twice.
    """
    if len(names) > MOST_NAMES:
        raise ValueError(f"it has {len(names):,} {what}, expected at most {MOST_NAMES:,}")
    if not all(isinstance(name, str) for name in names):
        raise ValueError(f"its {what} are not all text")
    if wrong := [name for name in names if not name.replace("_", " ").strip() or len(name) > LONGEST]:
        raise ValueError(f"its {what} hold {shorten(wrong[0])}, expected 1 to {LONGEST:,} characters")
    seen: set[str] = set()
    for name in names:
        if (plain := " ".join(name.replace("_", " ").split())) in seen:
            raise ValueError(f"its {what} hold {shorten(name)} twice")
        seen.add(plain)


def check_results(results: Sequence[Any]) -> None:
    """Refuse results that are no measurements.

    Raises:
        ValueError: the message names the first value that cannot be.
    """
    for result in results:
        if not isinstance(result, Mapping):
            raise ValueError(f"its results hold {shorten(result)}, expected facts of a test")
        for key in ("dataset", "split", "classes"):
            if not isinstance(result.get(key), str):
                raise ValueError(f"'{key}' of its results is {shorten(result.get(key))}, expected text")
        for key in ("num_classes", "num_images"):
            value = result.get(key)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"'{key}' of its results is {shorten(value)}, expected a count")
        for key in ("accuracy", "macro_f1"):
            if not _is_number(result.get(key)) or not 0 <= result[key] <= 100:
                raise ValueError(f"'{key}' of its results is {shorten(result.get(key))}, expected a number of percent")


def checked_decision(content: Any) -> Decision:
    """Return the decision of `kdpl fit` that the metadata holds.

    Raises:
        ValueError: it cannot be used, or has too much.
    """
    if isinstance(content, Mapping):
        for key, most in (("sentences", MOST_SENTENCES), ("background", MOST_NAMES), ("classnames", MOST_NAMES)):
            texts = content.get(key) or []
            if isinstance(texts, list) and len(texts) > most:
                raise ValueError(f"it has {len(texts):,} {key}, expected at most {most:,}")
            if isinstance(texts, list) and (long := [t for t in texts if isinstance(t, str) and len(t) > LONGEST]):
                raise ValueError(
                    f"its {key} hold {shorten(long[0])} of {len(long[0]):,} characters, expected up to {LONGEST:,}"
                )
    return Decision.of(content)


def check_comparison(content: Any) -> None:
    """Refuse a table of `kdpl fit` that cannot be shown.

    Raises:
        ValueError: the message names the value.
    """
    if not isinstance(content, Mapping):
        raise ValueError(f"'comparison' of its metadata is {shorten(content)}, expected dict")
    if not content:
        return
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        raise ValueError(f"'rows' of its comparison is {shorten(rows)}, expected a list of rows")
    if not isinstance(content.get("verdict"), str) or not isinstance(content.get("photos"), int):
        raise ValueError("its comparison has no verdict, or no number of photos")
    for row in rows:
        for key in ("agreement", "error", "divergence"):
            if not _is_number(row.get(key)):
                raise ValueError(f"'{key}' of its comparison is {shorten(row.get(key))}, expected a number")
        if not isinstance(row.get("prompts"), str):
            raise ValueError(f"'prompts' of its comparison is {shorten(row.get('prompts'))}, expected text")


def checked_images(content: Any) -> Preprocessing:
    """Return the preprocessing that the metadata holds.

    Raises:
        ValueError: no image can be prepared so.
    """
    missing = [key for key in ("size", "interpolation", "mean", "std") if content.get(key) is None]
    try:
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        return checked_preprocessing(content)
    except ValueError as error:
        raise ValueError(f"'preprocessing' of its metadata is one which no image can be prepared with: {error}") from None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
