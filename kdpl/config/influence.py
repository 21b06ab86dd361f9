"""Which configuration keys determine the learned numbers, and what of a configuration a run's manifest holds.

Every key belongs to one of three classes. A key that nobody has classified, of a fork say, counts as one that matters.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

from yacs.config import CfgNode

from kdpl.config.defaults import learners
from kdpl.config.teachers import DATASET, IMAGENET, SEPARATOR, listed

# Other values give other prompts. An entry that ends with a dot stands for all keys below it.
MATTERS = (
    "SEED", "INPUT.", "MODEL.BACKBONE.NAME", "DATALOADER.K_TRANSFORMS", "DATALOADER.TRAIN_X.", "OPTIM.", "TEST.FINAL_MODEL",
    "TRAINER.NAME", "DATASET.NAME", "DATASET.SOURCE_DOMAINS", "DATASET.NUM_LABELED", "DATASET.NUM_SHOTS", "DATASET.VAL_PERCENT",
    "DATASET.STL10_FOLD", "DATASET.CIFAR_C_TYPE", "DATASET.CIFAR_C_LEVEL", "DATASET.ALL_AS_UNLABELED",
    "DATASET.SUBSAMPLE_CLASSES", "DATASET.TEMPLATE", "DATASET.ON_BAD_IMAGE",
)  # fmt: skip
# Other values move the prompts by rounding alone.
ROUNDS = (
    "USE_CUDA", "TRAIN.DETERMINISTIC", "TRAINER.KDPL.COMPILE", "TRAINER.KDPL.MAX_TEXT_ROWS", "TRAINER.KDPL.SHARD_CLASSES",
)  # fmt: skip
# Folders and files (what is in them is compared instead), frequencies, caches, tests, and what no prompt learner reads.
HARMLESS = (
    "VERSION", "OUTPUT_DIR", "RESUME", "VERBOSE", "DATASET.ROOT", "DATASET.TARGET_DOMAINS", "DATASET.CLASSNAMES",
    "DATASET.IMAGE_LIST", "DATALOADER.NUM_WORKERS", "DATALOADER.RETURN_IMG0", "DATALOADER.TRAIN_U.", "DATALOADER.TEST.",
    "MODEL.INIT_WEIGHTS", "MODEL.BACKBONE.PRETRAINED", "MODEL.HEAD.", "TRAIN.CHECKPOINT_FREQ", "TRAIN.PRINT_FREQ",
    "TRAIN.COUNT_ITER", "TRAIN.CHECKPOINT_EVERY_MINUTES", "TEST.EVALUATOR", "TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT",
    "TEST.NO_TEST", "TEST.SPLIT", "TRAINER.KDPL.VOCABULARY", "TRAINER.KDPL.CACHE_DIR",
)  # fmt: skip
PROMPTS = "TRAINER.KDPL.TEACHER_PROMPTS"
CLIPS = {"MODEL.BACKBONE.NAME": "student", "TRAINER.KDPL.TEACHER": "teacher"}  # with the facts of a manifest that say which
# If they name a file or a folder, or several, its content is compared and its path is not.
FILES = (*CLIPS, "TRAINER.KDPL.TEACHER_TEMPLATES", PROMPTS)
# Keys of a later version: a manifest has them with other values than these alone, so that earlier runs can be resumed.
LATER = {"TRAINER.KDPL.TEACHER_TEMPLATES": "", PROMPTS: ""}
# A trainer sets them as its student takes images, so a configuration that is only merged may not have them yet.
FOLLOWING = ("INPUT.SIZE", "INPUT.INTERPOLATION", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
A_FILE = "a file"
_NAME = re.compile(r"[\w.-]+(/\d+(@\d+px)?)?(:[\w.-]+)?")  # "ViT-L/14@336px", "ViT-L-14:laion2b_s32b_b82k"
NOT_SET = "not set"


def influence(key: str, node: str, distilled: bool) -> str:
    """Return "matters", "rounds" or "harmless" for a key of a run.

    Args:
        node: of the run's prompt learner, `TRAINER.<node>`; empty for a trainer without prompts.
        distilled: the run has a teacher.
    """
    for names, kind in ((HARMLESS, "harmless"), (ROUNDS, "rounds"), (MATTERS, "matters")):
        if any(key == name or (name.endswith(".") and key.startswith(name)) for name in names):
            return kind
    group, _, rest = key.partition(".")
    if group == "TRAINER":
        owner = rest.partition(".")[0]
        if owner == "KDPL":
            return "matters" if distilled else "harmless"
        if owner in learners() and owner != node:
            return "harmless"
    return "matters"


def section(cfg: CfgNode, kind: str, node: str, distilled: bool) -> dict[str, Any]:
    """Return the keys of one kind of influence with their values, as JSON can hold them."""
    found = {key: _plain(key, value) for key, value in leaves(cfg) if influence(key, node, distilled) == kind}
    return {key: value for key, value in found.items() if key not in LATER or value != LATER[key]}


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
