"""The manifest of a run: everything that determines the learned numbers, and where they were computed.

It is written when a run starts and is carried in every checkpoint and bundle, in `results.json` and in the rows of reports.
What two manifests disagree in decides whether one run may continue another, and whether two results may share a table's cell.
"""

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import zip_longest
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from kdpl.common.files import atomic_write, file_digest
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.config.checks import DATASET, IMAGENET, SEPARATOR, listed
from kdpl.config.defaults import learners, leaves
from kdpl.config.keys import HARMLESS, KEYS, MATTERS, ROUNDS

FORMAT = 1
FILE_NAME = "manifest.json"
DIGITS = 10  # of the short digests
ZERO_SHOT = ("INPUT.", "MODEL.", "TRAINER.", "DATASET.TEMPLATE")  # what matters without a training
CLIPS = {"MODEL.BACKBONE.NAME": "student", "TRAINER.KDPL.TEACHER": "teacher"}  # with the facts that say which
A_FILE = "a file"  # in place of a path: its content is among the facts
NOT_SET = "not set"
_PACKAGES = ("kdpl", "dassl", "trainers", "datasets", "clip")  # that may lie beside a learner's file


class OtherRunError(ValueError):
    """A folder or a checkpoint belongs to another run."""


@dataclass(frozen=True)
class Manifest:
    """What made a run.

    Attributes:
        config: the configuration keys that matter, with their values.
        facts: what the configuration alone does not say: class names in order, template, digests of training images, weights
            and vocabulary.
        environment: versions, code of KDPL, device, processor, processes and threads, and the keys that move results by
            rounding alone.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A short digest of all that matters; tables and cards show it."""
        return _digest(self._named(), self.facts)

    @property
    def recipe(self) -> str:
        """A short digest that runs share which differ in their seed alone, and in the images that it has drawn, if any."""
        drawn = self.config.get("DATASET.NUM_SHOTS", -1) > 0
        facts = {key: value for key, value in self.facts.items() if not (drawn and key == "training images")}
        return _digest(self._named("SEED"), facts)

    def _named(self, *without: str) -> dict[str, Any]:
        """Return the configuration without the names of CLIPs of which a fact says what they are."""
        known = {key for key, fact in CLIPS.items() if self.facts.get(fact) is not None}
        return {key: value for key, value in self.config.items() if key not in {*known, *without}}

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON holds it."""
        return {"format": FORMAT, "digest": self.digest, "recipe": self.recipe, **asdict(self)}

    @classmethod
    def from_dict(cls, content: Any) -> "Manifest | None":
        """Return the manifest that `to_dict` wrote; None for what is not one, such as that of a foreign checkpoint."""
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            return None
        parts = [content.get(key) for key in ("config", "facts", "environment")]
        return cls(*parts) if all(isinstance(part, Mapping) for part in parts) else None

    def write(self, folder: str | os.PathLike) -> None:
        """Write `manifest.json` into a run's folder.

        Raises:
            OSError: it cannot be written; what was there before is untouched.
        """
        with atomic_write(Path(folder, FILE_NAME), "w") as file:
            file.write(json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n")


def read_manifest(folder: str | os.PathLike) -> Manifest | None:
    """Return the manifest in a run's folder; None if there is none, or none that this version can read."""
    try:
        return Manifest.from_dict(read_json(Path(folder, FILE_NAME)))
    except (OSError, UnsafeTextError):
        return None


# --------------------------------------------------------------------------------------------------------- comparing


def compare(then: Manifest, now: Manifest, there: str, what_to_do: str) -> None:
    """Refuse manifests that differ in what matters, and print in what their environments differ.

    Args:
        then, now: of a run, and of the command that would continue or evaluate it.
        there, what_to_do: as `refuse_differences`.

    Raises:
        OtherRunError: it lists what differs.
    """
    refuse_differences(found_differences(then, now), there, what_to_do)
    both = then.environment.keys() & now.environment.keys()
    moved = differences({key: then.environment[key] for key in both}, {key: now.environment[key] for key in both})
    for key, text in moved.items():
        by_rounding = key in ("processes", "threads") or influence(key, "", False) == ROUNDS
        print(f"Note: {text}; {'this moves results by rounding alone' if by_rounding else 'what it moves is not known'}")


def found_differences(then: Manifest, now: Manifest) -> dict[str, str]:
    """Return, by key, what two manifests differ in. A CLIP is compared by what it is, not by its name or path."""
    same = {key for key, fact in CLIPS.items() if then.facts.get(fact) is not None and then.facts[fact] == now.facts.get(fact)}
    found = differences(*({k: v for k, v in one.config.items() if k not in same} for one in (then, now)))
    found |= differences(dict(leaves(then.facts)), dict(leaves(now.facts)))
    if "class names" in found:
        pairs = enumerate(zip_longest(*(one.facts.get("class names") or () for one in (then, now))))
        i, (a, b) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
        found["class names"] = f"class names: label {i} is '{a}' in the folder, '{b}' now"
    return found


def compare_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return, by key, what two configurations differ in before a CLIP is loaded: what a file holds is not known yet."""
    unknown = {key for key in CLIPS if A_FILE in str(then.get(key)) or A_FILE in str(now.get(key))}
    unknown |= {name for name, key in KEYS.items() if key.follows}  # a trainer sets these
    return {key: text for key, text in differences(then, now).items() if key not in unknown}


def differences(then: Mapping[str, Any], now: Mapping[str, Any], there: str = "in the folder") -> dict[str, str]:
    """Return, by key, what differs between two sections: "OPTIM.LR: 0.005 in the folder, 0.5 now"."""
    pairs = {key: [part.get(key, NOT_SET) for part in (then, now)] for key in sorted({*then, *now})}
    shown = {key: [str(v)[:80] or "(empty)" for v in pair] for key, pair in pairs.items() if pair[0] != pair[1]}
    return {key: f"{key}: {a} {there}, {b} now" for key, (a, b) in shown.items()}


def refuse_differences(found: Mapping[str, str], there: str, what_to_do: str) -> None:
    """Raise an OtherRunError that lists what differs, if anything does.

    Args:
        there: the other run's folder or file, quoted.
        what_to_do: the end of the message.
    """
    if "TRAINER.NAME" in found:  # the options of either trainer say nothing about the other
        found = {key: text for key, text in found.items() if NOT_SET not in text}
    if found:
        lines = [f"  {text}" for text in found.values()]
        raise OtherRunError("\n".join([f"The run in {there} was made with other settings:", *lines, what_to_do]))


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:DIGITS]


# --------------------------------------------------------------------------------- what of a configuration matters


def influence(key: str, node: str, distilled: bool) -> str:
    """Return "matters", "rounds" or "harmless" for a key of a run.

    Args:
        node: of the run's prompt learner, `TRAINER.<node>`; empty for a trainer without prompts.
        distilled: the run has a teacher.
    """
    owner = key.split(".")[1] if key.startswith("TRAINER.") else ""
    if owner in learners():
        return MATTERS if owner == node else HARMLESS
    kind = KEYS[key].influence if key in KEYS else MATTERS
    return HARMLESS if owner == "KDPL" and kind == MATTERS and not distilled else kind


def section(cfg: CfgNode, kind: str, node: str, distilled: bool) -> dict[str, Any]:
    """Return the keys of one kind of influence with their values, as JSON can hold them."""
    return as_json({key: _plain(key, value) for key, value in leaves(cfg) if influence(key, node, distilled) == kind})


def config_of(cfg: CfgNode, node: str, distilled: bool) -> dict[str, Any]:
    """Return the manifest's part that is known from the configuration alone.

    Args:
        node: of the prompt learner; empty for a zero-shot trainer, whose numbers depend on pixels, CLIP and sentence.
        distilled: there is a teacher.
    """
    return {key: v for key, v in section(cfg, MATTERS, node, distilled).items() if node or key.startswith(ZERO_SHOT)}


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is left of a dictionary after it was written to JSON and read again, so that both compare equal."""
    return json.loads(json.dumps(content, default=str))


def _plain(key: str, value: Any) -> Any:
    if key not in KEYS or not KEYS[key].file or value in (DATASET, IMAGENET):
        return value
    return SEPARATOR.join(map(_without_path, listed(str(value))))


def _without_path(name: str) -> str:
    """Return "a file" for the name of a file or folder, and "MODEL:TAG:a file" for a file of published weights."""
    model, colon, path = name.rpartition(":")
    if os.path.exists(os.path.expanduser(name)):
        return A_FILE
    return f"{model}:{A_FILE}" if colon and os.path.exists(os.path.expanduser(path)) else name


def learner_file(student: type) -> dict[str, Any]:
    """Return digests of the file of a learner from outside this package, and of the modules beside it that it imports."""
    module = sys.modules[student.__module__]
    file = getattr(module, "__file__", None)
    if file is None or student.__module__.startswith("kdpl."):
        return {}
    root = Path(file).resolve().parents[student.__module__.count(".")]
    finder = ModuleFinder([] if root.name in ("site-packages", "dist-packages") else [str(root)], excludes=_PACKAGES)
    with contextlib.suppress(ImportError):  # `from . import x` of a package that is not the author's
        if "." in student.__module__:
            finder.import_hook(student.__module__)
        else:
            finder.load_file(file)
    used = {name: m.__file__ for name, m in sorted(finder.modules.items()) if m.__file__ and m.__file__ != file}
    digests = {name: file_digest(path).hex()[:16] for name, path in used.items()}
    return {"learner's file": file_digest(file).hex(), **({"learner's modules": digests} if digests else {})}
