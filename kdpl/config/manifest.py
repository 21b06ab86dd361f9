"""The manifest of a run: everything that determines the learned numbers, and where they were computed.

It is written when a run starts and is carried in every checkpoint and bundle, in `results.json` and in the rows of reports.
What two manifests disagree in decides whether one run may continue another, and whether two results may share a table's cell.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.config.influence import NOT_SET, differences, section

FORMAT = 1
FILE_NAME = "manifest.json"
THERE = "in the folder"
DIGITS = 10  # of the short digests
EARLIER = "earlier"  # in the environment: what was different before a run was continued
ZERO_SHOT = ("INPUT.", "MODEL.", "TRAINER.", "DATASET.TEMPLATE")  # what matters without a training
PER_SEED = ("SEED",)  # keys in which runs of one recipe differ
SHOTS = "DATASET.NUM_SHOTS"  # if positive, the seed draws the training images


class OtherRunError(ValueError):
    """A folder or a checkpoint belongs to another run."""


@dataclass(frozen=True)
class Manifest:
    """What made a run.

    Attributes:
        config: the configuration keys that matter, with their values.
        facts: what the configuration alone does not say: class names in order, template, digests of training images, weights
            and vocabulary.
        environment: versions, commit, device, processes and threads, and the keys that move results by rounding alone.
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
        config = {key: value for key, value in self.config.items() if key not in PER_SEED}
        drawn = self.config.get(SHOTS, -1) > 0
        facts = {key: value for key, value in self.facts.items() if not (drawn and key == "training images")}
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
    """Return the manifest of a run that continues another one, and print what can move its numbers by rounding.

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
    moved = differences(before, now.environment, THERE)
    for text in moved.values():
        print(f"Note: {text}; this moves results by rounding alone")
    if moved or earlier:
        environment[EARLIER] = [*earlier, *([{**{k: before.get(k) for k in moved}, "epoch": epoch}] if moved else ())]
    changes = [*then.changes, *([{**changed, "epoch": epoch}] if changed else ())]
    return Manifest(now.config, now.facts, environment, changes)


def compare(then: Manifest, now: Manifest, there: str, ways_out: str, allowed: Sequence[str] = ()) -> None:
    """Refuse manifests that differ in what matters.

    Raises:
        OtherRunError: it lists what differs; see `continue_from`.
    """
    found = differences(then.config, now.config, THERE) | differences(_shown(then.facts), _shown(now.facts), THERE)
    if "class names" in found:
        found["class names"] = _names_differ(then.facts["class names"], now.facts["class names"])
    refuse_differences(found, there, ways_out, allowed)


def refuse_differences(found: Mapping[str, str], there: str, ways_out: str, allowed: Sequence[str] = ()) -> None:
    """Raise an OtherRunError that lists what differs, if anything does that is not allowed to."""
    found = {key: text for key, text in found.items() if key not in allowed}
    if "TRAINER.NAME" in found:  # the options of either trainer say nothing about the other
        found = {key: text for key, text in found.items() if NOT_SET not in text}
    if list(found) == ["OPTIM.MAX_EPOCH"]:
        ways_out += " If it is to train longer: --more-epochs."
    if found:
        listed = "\n".join(f"  {text}" for text in found.values())
        raise OtherRunError(f"The run in {there} was made with other settings:\n{listed}\n{ways_out}")


def _shown(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = facts.get("class names")
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
