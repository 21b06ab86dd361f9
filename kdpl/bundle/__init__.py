"""Learned prompts as one file that stands alone, and a card about it: `prompts.safetensors` and `MODEL_CARD.md`.

The tensors are the learned parameters, under the names of the checkpoints. One entry of the file's metadata, `kdpl`, is JSON
with everything that is needed to use them: which CLIP they belong to, the variant's options, class names, how images are
prepared; and with the digest of all this and of the tensors. Nothing in it can run code.
"""

import hashlib
import json
import math
import os
import sys
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
from kdpl.clip.model import check_finite
from kdpl.clip.preprocessing import Preprocessing, checked_preprocessing
from kdpl.common.environment import VERSION
from kdpl.common.files import atomic_write
from kdpl.common.messages import did_you_mean, short_reason, shorten
from kdpl.common.safe_text import UnsafeTextError, parse_json
from kdpl.config.teachers import MOST_SENTENCES
from kdpl.students import Student

FORMAT = 2  # of the metadata; raised whenever an older version would misread it
KEY = "kdpl"
MOST_NAMES = 100_000  # ImageNet-21k has 21,841
LONGEST = 1_000  # characters of a name or a sentence; a text tower reads 77 tokens
OPTIONAL = ("decision", "comparison", "backbone_design")  # of the metadata: `kdpl fit` writes the first two


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
    digest = content.pop("digest", None) if isinstance(content, dict) else None
    if digest is not None and digest != _digest(parameters, content):
        raise _broken(path, "its tensors, names or settings are not those that were written: it is damaged or was edited")
    bundle = _bundle(path, content, parameters)
    if digest is None:
        print(f"Note: '{path}' carries no digest, so that damage to it is not seen", file=sys.stderr)
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
    types = {f.name: str(getattr(f.type, "__name__", f.type)) for f in fields(Bundle) if f.name != "parameters"}
    if missing := [name for name in types if name not in content and name not in OPTIONAL]:
        raise _broken(path, f"its metadata lacks {', '.join(missing)}")
    values = {name: content[name] for name in types if name in content}
    try:
        for name, value in values.items():
            if value is not None or "None" not in types[name]:
                _expect(value, _TYPES[types[name].partition("[")[0].split()[0]], f"'{name}' of its metadata", types[name])
        check_names(values["classnames"])
        if (template := values["template"]) and template.count("{}") != 1:
            raise ValueError(f"the sentence {shorten(template)} does not hold one '{{}}' for the class name")
        _check_facts(values)
        values["preprocessing"] = _checked_images(values["preprocessing"])
        values["decision"] = _checked_decision(values.get("decision"))
    except (TypeError, ValueError) as error:
        raise _broken(path, str(error)) from None
    return Bundle(parameters, **values)


# JSON's types of the fields' types
_TYPES = {"str": str, "bool": bool, "int": int, "dict": dict, "list": list, "Preprocessing": dict, "Decision": dict}


def _broken(path: Path, what: str) -> BundleError:
    return BundleError(
        f"'{path}' is not a bundle of prompts: {what}. Copy it again, or run the training's command again: it writes it again."
    )


def _expect(value: Any, types: type | tuple[type, ...], what: str, expected: str) -> None:
    if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
        raise ValueError(f"{what} is {shorten(value)}, expected {expected}")


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


def _check_facts(values: Mapping[str, Any]) -> None:
    """Refuse results, a comparison, a manifest or a design that cannot be shown or compared."""
    manifest, comparison = values["manifest"], values.get("comparison", {})
    if manifest is not None:
        _expect(manifest.get("digest"), str, "'digest' of its manifest", "text")
    for name, value in values.get("backbone_design", {}).items():
        _expect(value, str, f"'{name}' of its backbone_design", "text")
    for result in values["results"]:
        _expect(result, dict, "a result of its metadata", "facts of a test")
        for key in ("dataset", "split", "classes"):
            _expect(result.get(key), str, f"'{key}' of its results", "text")
        for key, most in (("num_classes", None), ("num_images", None), ("accuracy", 100), ("macro_f1", 100)):
            _expect_number(result.get(key), f"'{key}' of its results", most)
    if comparison:
        _expect(comparison.get("verdict"), str, "'verdict' of its comparison", "text")
        _expect_number(comparison.get("photos"), "'photos' of its comparison")
        _expect(comparison.get("rows"), list, "'rows' of its comparison", "a list of rows")
        for row in comparison["rows"]:
            _expect(row, dict, "a row of its comparison", "facts of it")
            _expect(row.get("prompts"), str, "'prompts' of its comparison", "text")
            for key in ("agreement", "error", "divergence"):
                _expect_number(row.get(key), f"'{key}' of its comparison")


def _expect_number(value: Any, what: str, most: float | None = None) -> None:
    expected = "a number of 0 or more" if most is None else f"a number from 0 to {most}"
    _expect(value, (int, float), what, expected)
    if not math.isfinite(value) or value < 0 or (most is not None and value > most):
        raise ValueError(f"{what} is {shorten(value)}, expected {expected}")


def _checked_decision(content: Any) -> Decision:
    for key, most in (("sentences", MOST_SENTENCES), ("background", MOST_NAMES), ("classnames", MOST_NAMES)):
        texts = (content or {}).get(key)
        if isinstance(texts, list) and len(texts) > most:
            raise ValueError(f"its decision has {len(texts):,} {key}, expected at most {most:,}")
        if isinstance(texts, list) and (long := [t for t in texts if isinstance(t, str) and len(t) > LONGEST]):
            raise ValueError(f"its {key} hold {shorten(long[0])} of {len(long[0]):,} characters, expected up to {LONGEST:,}")
    try:
        return Decision.of(content)
    except (TypeError, ValueError) as error:
        raise ValueError(f"'decision' of its metadata cannot be used: {error}") from None


def _checked_images(content: Any) -> Preprocessing:
    if missing := [key for key in ("size", "interpolation", "mean", "std") if content.get(key) is None]:
        raise ValueError(f"'preprocessing' of its metadata lacks {', '.join(missing)}")
    try:
        return checked_preprocessing(content)
    except ValueError as error:
        raise ValueError(f"no image can be prepared with 'preprocessing' of its metadata: {error}") from None
