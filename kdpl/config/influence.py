"""Which configuration keys determine the learned numbers, and what of a configuration a run's manifest holds.

The table of keys says whether another value matters. A key that it does not have, such as a fork's, counts as one that does.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from yacs.config import CfgNode

from kdpl.config.defaults import learners
from kdpl.config.keys import KEYS
from kdpl.config.teachers import DATASET, IMAGENET, SEPARATOR, listed

PROMPTS = "TRAINER.KDPL.TEACHER_PROMPTS"
CLIPS = {"MODEL.BACKBONE.NAME": "student", "TRAINER.KDPL.TEACHER": "teacher"}  # with the facts of a manifest that say which
FILES = {
    name for name, key in KEYS.items() if key.file
}  # if they name a file or a folder, or several, its content is compared and its path is not
FOLLOWING = {
    name for name, key in KEYS.items() if key.follows
}  # a trainer sets them, so a configuration that is only merged may not have them yet
A_FILE = "a file"
_NAME = re.compile(r"[\w.-]+(/\d+(@\d+px)?)?(:[\w.-]+)?")  # "ViT-L/14@336px", "ViT-L-14:laion2b_s32b_b82k"
NOT_SET = "not set"


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
    if key in FILES and value not in (DATASET, IMAGENET):
        return SEPARATOR.join(_without_path(part) for part in listed(str(value)))
    return list(value) if isinstance(value, tuple) else value


def _without_path(name: str) -> str:
    """Return "a file" for the name of a file or folder, and "MODEL:TAG:a file" for a file of published weights."""
    if os.path.exists(os.path.expanduser(name)):
        return A_FILE
    model, colon, path = name.rpartition(":")
    return f"{model}:{A_FILE}" if colon and os.path.exists(os.path.expanduser(path)) else name


def names_a_file(value: Any) -> bool:
    """Whether a manifest's CLIP was, or may have been, a file or folder; version 0.2 recorded the paths of folders."""
    return any(A_FILE in part or not _NAME.fullmatch(part) for part in listed(str(value)))


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


def design_differences(then: Mapping[str, str], now: Mapping[str, str], there: str) -> dict[str, str]:
    """Return what two designs of CLIPs differ in; what one of them, of another version, does not have is not compared."""
    known = then.keys() & now.keys()
    return differences({key: then[key] for key in known}, {key: now[key] for key in known}, there)


def unfollowed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings without those that follow the student, to compare with a configuration that no trainer has seen."""
    return {key: value for key, value in settings.items() if key not in FOLLOWING}


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
