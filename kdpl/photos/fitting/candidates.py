"""What `kdpl fit` may learn, and the settings: class vectors, class-specific and shared prompts, any other prompt learner."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from yacs.config import CfgNode

from kdpl.clip.loading import describe, outline_clip
from kdpl.clip.names import EMBEDDED
from kdpl.config.checks import check_values
from kdpl.config.command_line import CONFIGS
from kdpl.config.keys import ConfigError
from kdpl.config.merging import merged_cfg
from kdpl.datasets.emoji.scenes import EMBEDDED as EMBEDDED_FOLDER
from kdpl.text.templates import DEFAULT

if TYPE_CHECKING:
    from kdpl.photos.fitting.plan import Plan

LEAST_EPOCHS = 12  # of any number of photos (benchmarks/emoji/search_photos.py)
EPOCHS_AT = 16  # photos of each name, for which the epochs of the settings hold (benchmarks/emoji/search_photos.py)
STEPS = (300, 3000)  # of a training from features: at least, at most
TEXT_SIZE = 1.9  # root mean square of the values in the text features for which the rate of class vectors holds
FROM_PHOTOS = 4000  # steps of a training from augmented photos


@dataclass(frozen=True)
class Candidate:
    """Something that can be learned."""

    key: str  # its name in --variant and of its folder
    title: str  # its name in tables
    learner: str
    settings: str = ""  # its configuration file in `configs/trainers`; empty: that of the student (`config_file`)
    steps: int = 0  # of the training, about; 0: those of the settings, for so many names
    from_features: bool = False  # it trains from the features of the pass; else from photos that are augmented afresh

    @property
    def trainer(self) -> str:
        return f"KDPL_{self.learner}"


FOR_NAMES = (  # in the order in which they are trained
    Candidate("TaskRes", "class vectors", "TaskRes", "photos.yaml", 0, True),
    Candidate("CSC", "class-specific prompts", "CoOp", "photos.yaml", 0, True),
    Candidate("CoOp", "shared prompts", "CoOp", "photos_shared.yaml", 0, True),
)
FOR_ONE_NAME = (Candidate("CoOp", "shared prompts", "CoOp", "", STEPS[0], True),)  # learned from a vocabulary
QUICK, BEST = ("TaskRes",), "PromptSRC"


def candidates_for(effort: str, variant: str, agnostic: bool, student: str) -> list[Candidate]:
    """Return what is to be learned, in order.

    Args:
        effort: "quick", "normal" or "best".
        variant: that alone; empty: what belongs to the effort.
        agnostic: there is one class name alone.
        student: which may have towers that take no prompts.

    Raises:
        ConfigError: there is no such variant, or none with settings for the student.
    """
    known = {c.key: c for c in (FOR_ONE_NAME if agnostic else FOR_NAMES)}
    if variant:
        if agnostic and variant in ("TaskRes", "CSC"):
            raise ConfigError(f"--variant {variant} learns for the names themselves, and there is one alone: choose CoOp.")
        chosen = [known.get(variant) or _other(variant)]
    else:
        chosen = [c for c in known.values() if effort != "quick" or agnostic or c.key in QUICK]
        architecture = describe(student)
        if architecture.no_text_context and not agnostic:
            chosen = [c for c in chosen if c.learner == "TaskRes"]
        elif effort == "best" and architecture.is_vit:
            chosen.append(_other(BEST))
    for candidate in chosen:
        config_file(candidate, student)
    return chosen


def _other(variant: str) -> Candidate:
    from kdpl.students import Student  # which imports PyTorch

    learner = Student.known.get(variant)
    if learner is None or not (CONFIGS / "trainers" / f"KDPL_{variant}").is_dir():
        others = sorted(path.name.removeprefix("KDPL_") for path in (CONFIGS / "trainers").glob("KDPL_*"))
        known = dict.fromkeys([*(c.key for c in FOR_NAMES), *others])
        raise ConfigError(f"The learner '{variant}' has no settings: expected {', '.join(known)}.")
    frozen = learner.image_features_are_frozen
    return Candidate(variant, f"{variant} prompts", variant, "", STEPS[0] if frozen else FROM_PHOTOS, frozen)


def refuse_labels(candidate: Candidate) -> None:
    """Raise a ConfigError if a candidate cannot learn from labels, before anything is loaded."""
    from kdpl.students import Student

    if not candidate.from_features or Student.known[candidate.learner].text_depends_on_images:
        raise ConfigError(
            f"--labels is for what learns from the features of the pass, and {candidate.title} do not: leave --labels or "
            f"{'--best' if candidate.key == BEST else '--variant'} out."
        )


def config_file(candidate: Candidate, student: str) -> Path:
    """Return the settings of a candidate; of other learners published ones, or those of the embedded benchmark.

    Raises:
        ConfigError: there are none.
    """
    folder = CONFIGS / "trainers" / candidate.trainer
    prefix = {"RN": "rn50", "ViT-B/16": "vit_b16"}.get("RN" if student.startswith("RN") else student, "vit_b32")
    files = [folder / "emoji.yaml"] if student in EMBEDDED else sorted(folder.glob(f"{prefix}*.yaml"))
    files = [folder / candidate.settings] if candidate.settings else files
    files = [file for file in files if file.is_file() and "cross_datasets" not in file.name]
    if not files:
        raise ConfigError(
            f"The learner '{candidate.learner}' has no settings for '{student}' in '{folder}': choose another one."
        )
    return files[0]


def settings(plan: "Plan", candidate: Candidate, photos: Sequence[str], text_size: float) -> CfgNode:
    """Return the configuration of a candidate's training.

    Args:
        photos: that are trained on.
        text_size: root mean square of the values in the student's text features, in whose units class vectors move.
    """
    from kdpl.config.defaults import node_of

    folder, node = plan.folder(candidate), node_of(candidate.trainer)
    flags = {
        "DATASET.NAME": "ImageFolder",
        "DATASET.ROOT": str(plan.photos),
        "DATASET.IMAGE_LIST": str(folder / "photos.json"),
        "DATASET.TEMPLATE": plan.template if plan.template != DEFAULT else "",
        "DATASET.CLASSNAMES": "" if plan.agnostic else str(plan.file("names.txt")),
        "OUTPUT_DIR": str(folder),
        "SEED": plan.seed,
        "TRAINER.NAME": candidate.trainer,
        "MODEL.BACKBONE.NAME": plan.student,
        "TRAINER.KDPL.TEACHER": plan.teacher,
        "TRAINER.KDPL.VOCABULARY": vocabulary_for(plan.student) if plan.agnostic else "",
    }
    cfg = merged_cfg(("", str(config_file(candidate, plan.student))), flags, [])
    clip = outline_clip(plan.student)
    cfg.INPUT.SIZE = [clip.resolution] * 2
    cfg.INPUT.INTERPOLATION = clip.preprocessing.interpolation
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(clip.mean), list(clip.std)
    batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(photos))
    cfg.OPTIM.MAX_EPOCH = max(LEAST_EPOCHS, math.ceil(steps_of(candidate, cfg, len(plan.names)) / (len(photos) // batch)))
    if candidate.learner == "TaskRes" and candidate.settings:
        cfg.OPTIM.LR = float(f"{cfg.OPTIM.LR * text_size / TEXT_SIZE:.2g}")
    precision = "fp32" if plan.student in EMBEDDED else "fp16"
    cfg.TRAINER[node].PREC = cfg.TRAINER.KDPL.PREC = precision
    cfg.TRAINER.KDPL.VIEWS = int(candidate.from_features)
    cfg.TRAINER.KDPL.CLASS_AGNOSTIC = plan.agnostic
    cfg.DATASET.NUM_SHOTS = -1
    cfg.TRAIN.PRINT_FREQ = 10
    cfg.TEST.NO_TEST = True
    cfg.DATALOADER.NUM_WORKERS = 0 if candidate.from_features else min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    check_values(cfg)
    cfg.freeze()
    return cfg


def steps_of(candidate: Candidate, cfg: CfgNode, names: int) -> int:
    """Return about how many steps a candidate is trained for; `cfg` has the epochs of its settings."""
    if candidate.steps:
        return candidate.steps
    least, most = STEPS
    return min(most, max(least, cfg.OPTIM.MAX_EPOCH * EPOCHS_AT * names // cfg.DATALOADER.TRAIN_X.BATCH_SIZE))


def photos_for(plan: "Plan", candidate: Candidate, photos: Sequence[str]) -> list[str]:
    """Return the photos that a candidate trains on: class vectors on all, prompts on as many as all epochs see."""
    if candidate.learner == "TaskRes":
        return list(photos)
    cfg = merged_cfg((str(config_file(candidate, plan.student)),), {}, [])
    batch, steps = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, steps_of(candidate, cfg, len(plan.names))
    return list(photos)[: max(batch, steps * batch // LEAST_EPOCHS)]


def vocabulary_for(student: str) -> str:
    """Return the vocabulary of a student: that of the embedded models knows their words alone."""
    return str(EMBEDDED_FOLDER / "vocabulary.txt") if student in EMBEDDED else "imagenet21k"
