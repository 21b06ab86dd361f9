"""The manifest of a run: everything that determines the learned numbers, and where they were computed.

It is written when a run starts and is carried in every checkpoint and bundle, in `results.json` and in the rows of reports.
What two manifests disagree in decides whether one run may continue another, and whether two results may share a table's cell.
"""

import contextlib
import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from modulefinder import ModuleFinder
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from kdpl.common.environment import PACKAGE
from kdpl.common.files import atomic_write, file_digest
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.config.defaults import learners
from kdpl.config.keys import KEYS
from kdpl.config.teachers import DATASET, IMAGENET, SEPARATOR, listed

FORMAT = 1
FILE_NAME = "manifest.json"
THERE = "in the folder"
DIGITS = 10  # of the short digests
SUMS = ("processes", "threads")  # of the environment: sums in another order
ROUNDING = "this moves results by rounding alone"
UNKNOWN = "whether results move with it is not known"
EARLIER = "earlier"  # in the environment: what was different before a run was continued
ZERO_SHOT = ("INPUT.", "MODEL.", "TRAINER.", "DATASET.TEMPLATE")  # what matters without a training
PER_SEED = ("SEED",)  # keys in which runs of one recipe differ
SHOTS = "DATASET.NUM_SHOTS"  # if positive, the seed draws the training images
CLIPS = {"MODEL.BACKBONE.NAME": "student", "TRAINER.KDPL.TEACHER": "teacher"}  # with the facts that say which
A_FILE = "a file"  # in place of a path: its content is among the facts
NOT_SET = "not set"
_OTHERS = ("kdpl", "dassl", "clip", "open_clip", "torch", "torchvision", "trainers", "datasets")
_INSTALLED = tuple(os.path.realpath(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


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
        changes: settings that were changed on purpose between two parts of the run, `{key: [then, now], "epoch": n}` each.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Mapping[str, Any]] = ()

    @property
    def digest(self) -> str:
        """A short digest of all that matters; tables and cards show it."""
        return _digest(self.config, self.facts, list(self.changes))

    @property
    def recipe(self) -> str:
        """A short digest that runs share which differ in their seed alone, and in the images that it has drawn, if any."""
        left_out = {*PER_SEED, *(key for key, fact in CLIPS.items() if self.facts.get(fact) is not None)}
        config = {key: value for key, value in self.config.items() if key not in left_out}
        drawn = ["training images"] if self.config.get(SHOTS, -1) > 0 else []
        facts = {key: value for key, value in self.facts.items() if key not in drawn}
        return _digest(config, facts, [{**c, "epoch": None} for c in self.changes])

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest as JSON holds it."""
        return {
            "format": FORMAT,
            "digest": self.digest,
            "recipe": self.recipe,
            "config": dict(self.config),
            "facts": dict(self.facts),
            "environment": dict(self.environment),
            "changes": [dict(change) for change in self.changes],
        }

    @classmethod
    def from_dict(cls, content: Any) -> "Manifest | None":
        """Return the manifest that `to_dict` wrote; None for what is not one, such as that of a foreign checkpoint."""
        if not isinstance(content, Mapping) or content.get("format") != FORMAT:
            return None
        parts = [content.get(key) for key in ("config", "facts", "environment")]
        changes = content.get("changes")
        if not all(isinstance(part, Mapping) for part in parts) or not isinstance(changes, list):
            return None
        return cls(*parts, changes)

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


def config_of(cfg: CfgNode, node: str, distilled: bool) -> dict[str, Any]:
    """Return the manifest's part that is known from the configuration alone.

    Args:
        node: of the prompt learner; empty for a zero-shot trainer, whose numbers depend on pixels, CLIP and sentence.
        distilled: there is a teacher.
    """
    found = section(cfg, "matters", node, distilled)
    return as_json(found if node else {key: value for key, value in found.items() if key.startswith(ZERO_SHOT)})


def continue_from(
    then: Manifest, now: Manifest, there: str, ways_out: str, allowed: Sequence[str] = (), epoch: int = 0
) -> Manifest:
    """Return the manifest of a run that continues another one, and print in what their environments differ.

    Args:
        then: of the run.
        now: of the command that would continue it.
        there: the first one's folder or file, quoted.
        ways_out: the end of the error message.
        allowed: configuration keys that may differ, because the user said so.
        epoch: how many epochs were finished.

    Raises:
        OtherRunError: it lists what differs.
    """
    pairs = {key: [then.config.get(key), now.config.get(key)] for key in allowed}
    changed = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    compare(then, now, there, ways_out, allowed)
    environment, earlier = dict(now.environment), list(then.environment.get(EARLIER, ()))
    before = {key: value for key, value in then.environment.items() if key != EARLIER}
    moved = differences(before, {key: value for key, value in now.environment.items() if key in before}, THERE)
    for key, text in moved.items():
        print(f"Note: {text}; {ROUNDING if influence(key, '', False) == 'rounds' or key in SUMS else UNKNOWN}")
    if moved or earlier:
        environment[EARLIER] = [*earlier, *([{**{k: before.get(k) for k in moved}, "epoch": epoch}] if moved else ())]
    changes = [*then.changes, *([{**changed, "epoch": epoch}] if changed else ())]
    return Manifest({**now.config, **_names_of(then, now)}, now.facts, environment, changes)


def compare(then: Manifest, now: Manifest, there: str, ways_out: str, allowed: Sequence[str] = ()) -> None:
    """Refuse manifests that differ in what matters.

    Raises:
        OtherRunError: it lists what differs; see `continue_from`.
    """
    refuse_differences(found_differences(then, now), there, ways_out, allowed)


def found_differences(then: Manifest, now: Manifest) -> dict[str, str]:
    """Return, by key, what two manifests differ in. A CLIP is compared by what it is, not by its name or path."""
    found = differences({**then.config, **_names_of(now, then)}, now.config, THERE)
    found |= differences(_shown(then.facts), _shown(now.facts), THERE)
    if "class names" in found:
        found["class names"] = _names_differ(then.facts["class names"], now.facts["class names"])
    return found


def _names_of(one: Manifest, other: Manifest) -> dict[str, Any]:
    """Return the names that the first has for the CLIPs that are the same in both."""

    same = {}
    for key, fact in CLIPS.items():
        if one.facts.get(fact) is not None and one.facts[fact] == other.facts.get(fact):
            same[key] = one.config.get(key)
    return {key: name for key, name in same.items() if key in one.config and key in other.config}


def is_continued(then: Manifest, now: Manifest) -> bool:
    """Whether a manifest is of the same run as an earlier one, which may have been continued with changes since."""
    if [dict(change) for change in now.changes[: len(then.changes)]] != [dict(change) for change in then.changes]:
        return False
    config = dict(now.config)
    for change in reversed(now.changes[len(then.changes) :]):
        config |= {key: pair[0] for key, pair in change.items() if key != "epoch"}
    return not found_differences(then, replace(now, config=config))


def compare_settings(then: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """Return, by key, what two configurations differ in before a CLIP is loaded: what a file holds is not known yet."""
    unknown = {key for key in CLIPS if A_FILE in str(then.get(key)) or A_FILE in str(now.get(key))}
    unknown |= {name for name, key in KEYS.items() if key.follows}  # a trainer sets these
    return {key: text for key, text in differences(then, now, THERE).items() if key not in unknown}


def refuse_differences(found: Mapping[str, str], there: str, ways_out: str, allowed: Sequence[str] = ()) -> None:
    """Raise an OtherRunError that lists what differs, if anything does that is not allowed to."""
    found = {key: text for key, text in found.items() if key not in allowed}
    if "TRAINER.NAME" in found:  # the options of either trainer say nothing about the other
        found = {key: text for key, text in found.items() if NOT_SET not in text}
    if list(found) == ["OPTIM.MAX_EPOCH"]:
        ways_out += " If it is to train longer: --more-epochs."
    if found:
        listed = [f"  {text}" for text in found.values()]
        raise OtherRunError("\n".join([f"The run in {there} was made with other settings:", *listed, ways_out]))


def _shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    names, parts = facts.get("class names"), {key: value for key, value in facts.items() if isinstance(value, Mapping)}
    facts = {key: value for key, value in facts.items() if key not in parts}
    facts |= {f"{key}, {name}": value for key, part in parts.items() for name, value in part.items()}
    return {**facts, **({"class names": f"{len(names)} names ({_digest(names)})"} if names is not None else {})}


def _names_differ(then: Sequence[str], now: Sequence[str]) -> str:
    if sorted(then) == sorted(now):
        i = next(i for i, (a, b) in enumerate(zip(then, now, strict=True)) if a != b)
        return f"class names: the same in another order; label {i} is '{then[i]}' {THERE}, '{now[i]}' now"
    lost, new = ([n for n in a if n not in set(b)] for a, b in ((then, now), (now, then)))
    return f"class names: {len(then)} {THERE}, {len(now)} now; only {THERE}: {_some(lost)}; only now: {_some(new)}"


def _some(names: Sequence[str]) -> str:
    return (", ".join(f"'{n}'" for n in names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")) or "none"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:DIGITS]


def as_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is left of a dictionary after it was written to JSON and read again, so that both compare equal."""
    return json.loads(json.dumps(content, default=str))


# ----------------------------------------------------------------------------- what of a configuration matters


def influence(key: str, node: str, distilled: bool) -> str:
    """Return "matters", "rounds" or "harmless" for a key of a run.

    Args:
        node: of the run's prompt learner, `TRAINER.<node>`; empty for a trainer without prompts.
        distilled: the run has a teacher.
    """
    group, _, rest = key.partition(".")
    owner = rest.partition(".")[0] if group == "TRAINER" else ""
    if owner in learners():
        return "matters" if owner == node else "harmless"
    kind = KEYS[key].influence if key in KEYS else "matters"
    return "harmless" if owner == "KDPL" and kind == "matters" and not distilled else kind


def section(cfg: CfgNode, kind: str, node: str, distilled: bool) -> dict[str, Any]:
    """Return the keys of one kind of influence with their values, as JSON can hold them."""
    return {key: _plain(key, value) for key, value in leaves(cfg) if influence(key, node, distilled) == kind}


def leaves(cfg: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield all keys, with dots, and their values."""
    for key, value in cfg.items():
        if isinstance(value, CfgNode):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _plain(key: str, value: Any) -> Any:
    if key in KEYS and KEYS[key].file and value not in (DATASET, IMAGENET):
        return SEPARATOR.join(_without_path(part) for part in listed(str(value)))
    return list(value) if isinstance(value, tuple) else value


def _without_path(name: str) -> str:
    """Return "a file" for the name of a file or folder, and "MODEL:TAG:a file" for a file of published weights."""
    if os.path.exists(os.path.expanduser(name)):
        return A_FILE
    model, colon, path = name.rpartition(":")
    return f"{model}:{A_FILE}" if colon and os.path.exists(os.path.expanduser(path)) else name


def differences(then: Mapping[str, Any], now: Mapping[str, Any], there: str) -> dict[str, str]:
    """Return, by key, what differs between two sections: "OPTIM.LR: 0.005 in the folder, 0.5 now".

    Args:
        there: where the first section is from, such as "in the folder".
    """
    missing = object()
    found = {}
    for key in sorted({*then, *now}):
        a, b = then.get(key, missing), now.get(key, missing)
        if a != b:
            shown = [NOT_SET if v is missing else _short(v) for v in (a, b)]
            found[key] = f"{key}: {shown[0]} {there}, {shown[1]} now"
    return found


def _short(value: Any) -> str:
    text = str(value) or "(empty)"
    return text if len(text) <= 80 else f"{text[:77]}..."


# --------------------------------------------------------------- the code of a learner from outside this package


def learner_file(student: type) -> dict[str, Any]:
    """Return digests of the file of a learner from outside this package, and of the modules of its author's that it imports."""
    module = sys.modules[student.__module__]
    file = getattr(module, "__file__", None)
    if file is None or student.__module__.startswith("kdpl."):
        return {}
    root = Path(file).resolve().parents[student.__module__.count(".")]
    paths = [path for path in (str(root), *sys.path) if not _is_installed(os.path.realpath(path))]
    finder = ModuleFinder(paths, excludes=_OTHERS)
    with contextlib.suppress(ImportError):  # `from . import x` of a package that is not the author's
        if "." in student.__module__:
            finder.import_hook(student.__module__)
        else:
            finder.load_file(file)
    used = {name: m.__file__ for name, m in sorted(finder.modules.items()) if m.__file__ and m.__file__ != file}
    digests = {name: file_digest(path).hex()[:16] for name, path in used.items()}
    return {"learner's file": file_digest(file).hex(), **({"learner's modules": digests} if digests else {})}


def _is_installed(folder: str) -> bool:
    return folder.startswith((*_INSTALLED, str(PACKAGE))) or bool({"site-packages", "dist-packages"} & {*Path(folder).parts})
