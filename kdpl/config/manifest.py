"""The manifest of a run: everything that determines the learned numbers, and where they were computed.

It is written when a run starts and is carried in every checkpoint and bundle, in `results.json` and in the rows of reports.
What two manifests disagree in decides whether one run may continue another, and whether two results may share a table's cell.
"""

import hashlib
import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.config.influence import CLIPS, NOT_SET, design_differences, differences, influence, names_a_file, section, unfollowed

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
# Facts of a later version: what an earlier manifest does not have is not known, and no difference.
DESIGNS = ("student's design", "teacher's design", "clip's design")
LATER_FACTS = (*DESIGNS, "learner's modules", "drawn from")


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
        tests: digests of the images that it was tested on, by data set and split; not a part of what makes a run.
        changes: settings that were changed on purpose between two parts of the run, `{key: [then, now], "epoch": n}` each.
    """

    config: Mapping[str, Any]
    facts: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    changes: Sequence[Mapping[str, Any]] = ()
    tests: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """A short digest of all that matters; tables and cards show it."""
        return _digest(self.config, self.facts, list(self.changes))

    @property
    def recipe(self) -> str:
        """A short digest that runs share which differ in their seed alone, and in the images that it has drawn, if any."""
        return self.recipe_without(())

    def recipe_without(self, unknown: Collection[str]) -> str:
        """Return the recipe but for some facts, which other runs do not have, and for the names of CLIPs that are known."""
        left_out = {*PER_SEED, *(key for key, fact in CLIPS.items() if self.facts.get(fact) is not None)}
        config = {key: value for key, value in self.config.items() if key not in left_out}
        drawn = ["training images"] if self.config.get(SHOTS, -1) > 0 else []
        facts = {key: value for key, value in self.facts.items() if key not in (*unknown, *drawn)}
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
            "test images": dict(self.tests),
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
        tests = content.get("test images")
        return cls(*parts, changes, tests if isinstance(tests, Mapping) else {})

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
    if unknown := [key for key in LATER_FACTS if key in now.facts and key not in then.facts]:
        print(f"Note: the run in {there} was started by an earlier version, so these are not compared: {', '.join(unknown)}")
    environment, earlier = dict(now.environment), list(then.environment.get(EARLIER, ()))
    before = {key: value for key, value in then.environment.items() if key != EARLIER}
    moved = differences(before, {key: value for key, value in now.environment.items() if key in before}, THERE)
    for key, text in moved.items():
        print(f"Note: {text}; {ROUNDING if influence(key, '', False) == 'rounds' or key in SUMS else UNKNOWN}")
    if moved or earlier:
        environment[EARLIER] = [*earlier, *([{**{k: before.get(k) for k in moved}, "epoch": epoch}] if moved else ())]
    changes = [*then.changes, *([{**changed, "epoch": epoch}] if changed else ())]
    facts = {key: value for key, value in now.facts.items() if key not in unknown}  # nobody knows of the epochs before
    return Manifest({**now.config, **_names_of(then, now)}, facts, environment, changes, then.tests)


def compare(then: Manifest, now: Manifest, there: str, ways_out: str, allowed: Sequence[str] = ()) -> None:
    """Refuse manifests that differ in what matters.

    Raises:
        OtherRunError: it lists what differs; see `continue_from`.
    """
    refuse_differences(found_differences(then, now), there, ways_out, allowed)


def found_differences(then: Manifest, now: Manifest) -> dict[str, str]:
    """Return, by key, what two manifests differ in. A CLIP is compared by what it is, not by its name or path."""
    ours = {key: value for key, value in now.facts.items() if key in then.facts or key not in LATER_FACTS}
    theirs = {key: value for key, value in then.facts.items() if key in now.facts or key not in LATER_FACTS}
    found = differences({**then.config, **_names_of(now, then)}, now.config, THERE)
    for key in DESIGNS:
        if key in theirs and key in ours:
            designs = design_differences(theirs.pop(key), ours.pop(key), THERE)
            found |= {f"{key}, {name}": f"{key}, {text}" for name, text in designs.items()}
    found |= differences(_shown(theirs), _shown(ours), THERE)
    if "class names" in found:
        found["class names"] = _names_differ(then.facts["class names"], now.facts["class names"])
    return found


def _names_of(one: Manifest, other: Manifest) -> dict[str, Any]:
    """Return the names that the first has for the CLIPs that are the same in both."""

    def facts(manifest: Manifest, fact: str) -> list[Any]:
        return [manifest.facts.get(fact), manifest.facts.get(f"{fact}'s design")]

    same = {}
    for key, fact in CLIPS.items():
        (weights, design), (others, others_design) = facts(one, fact), facts(other, fact)
        other_design = design_differences(design or {}, others_design or {}, THERE)
        if weights is not None and weights == others and not other_design:
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
    found = differences(unfollowed(then), unfollowed(now), THERE)
    unknown = {key for key in CLIPS if names_a_file(then.get(key)) or names_a_file(now.get(key))}
    return {key: text for key, text in found.items() if key not in unknown}


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
