"""Learners that are trained, for `kdpl fit --learn NAME` and `--best`: the existing trainers, from features that are known.

Class vectors, class-specific and shared prompts, or any other learner; with a single class name the names of a vocabulary are
learned from. A training is stopped and resumed as one of `train.py`.
"""

import dataclasses
import json
import math
import os
import re
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from kdpl.bundle import Bundle, Decision, read_bundle
from kdpl.bundle.learned import NameEncoder, fitting_options, learned_student
from kdpl.classifier.decoding import Decoder, stacked_pixels
from kdpl.clip.loading import describe, outline_clip
from kdpl.clip.model import Clip
from kdpl.clip.names import EMBEDDED
from kdpl.clip.preprocessing import Normalize
from kdpl.common.command import Interrupted
from kdpl.common.files import atomic_write
from kdpl.config.checks import check_values
from kdpl.config.command_line import CONFIGS
from kdpl.config.keys import ConfigError
from kdpl.config.manifest import OtherRunError
from kdpl.config.merging import merged_cfg
from kdpl.datasets.emoji.scenes import EMBEDDED as EMBEDDED_FOLDER
from kdpl.distill.labelled import Labelled
from kdpl.distill.views import FeatureTable, ViewFeatures
from kdpl.photos.waiting import doing
from kdpl.students import Student
from kdpl.text.prompts import sentence_features
from kdpl.text.templates import DEFAULT, fill

LEAST_EPOCHS = 12  # of any number of photos
EPOCHS_AT = 16  # photos of each name, for which the epochs of the settings hold
STEPS = (300, 3000)  # of a training from features: at least, at most
TEXT_SIZE = 1.9  # root mean square of the values in the text features for which the rate of class vectors holds
FROM_PHOTOS = 4000  # steps of a training from augmented photos
STEP = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")
BEST = "PromptSRC"


@dataclass(frozen=True)
class Learner:
    """Something that is trained."""

    key: str  # its name in --learn and of its folder
    title: str  # its name in tables
    student: str  # the class
    settings: str = ""  # its configuration file in `configs/trainers`; empty: that of the student (`config_file`)
    steps: int = 0  # of the training, about; 0: those of the settings, for so many names
    from_features: bool = True  # it trains from the features of the pass; else from photos that are augmented

    @property
    def trainer(self) -> str:
        return f"KDPL_{self.student}"


FOR_NAMES = (
    Learner("TaskRes", "class vectors", "TaskRes", "photos.yaml"),
    Learner("CSC", "class-specific prompts", "CoOp", "photos.yaml"),
    Learner("CoOp", "shared prompts", "CoOp", "photos_shared.yaml"),
)
FOR_ONE_NAME = Learner("CoOp", "shared prompts", "CoOp", "", STEPS[0])  # learned from a vocabulary


@dataclass(frozen=True)
class Task:
    """What a fit is about."""

    photos: Path  # the folder
    names: list[str]
    output: Path
    student: str
    teacher: str
    template: str
    seed: int

    @property
    def agnostic(self) -> bool:
        """Whether names of a vocabulary are learned from: with a single name there is nothing to distil."""
        return len(self.names) == 1

    def folder(self, learner: Learner) -> Path:
        return self.output / "learned" / learner.key


def learners_for(wanted: str, best: bool, agnostic: bool, student: str, labels: bool) -> list[Learner]:
    """Return what is to be trained, in order; by default nothing.

    Raises:
        ConfigError: there is no such learner, none with settings for the student, or it cannot learn from labels.
    """
    if agnostic:
        if wanted not in ("", "CoOp"):
            raise ConfigError(f"--learn {wanted} learns for the names themselves, and there is one alone: choose CoOp.")
        learners = [FOR_ONE_NAME]
    elif wanted:
        learners = [{learner.key: learner for learner in FOR_NAMES}.get(wanted) or _other(wanted)]
    elif best:
        architecture = describe(student)
        learners = list(FOR_NAMES[: 1 if architecture.no_text_context else None])
        if architecture.is_vit and not architecture.no_text_context and not labels:
            learners.append(_other(BEST))
    else:
        learners = []
    for learner in learners:
        config_file(learner, student)
        if labels and (not learner.from_features or Student.known[learner.student].text_depends_on_images):
            raise ConfigError(f"--labels is for what learns from features, and {learner.title} do not: leave --learn out.")
    return learners


def _other(name: str) -> Learner:
    learner = Student.known.get(name)
    if learner is None or not (CONFIGS / "trainers" / f"KDPL_{name}").is_dir():
        others = sorted(path.name.removeprefix("KDPL_") for path in (CONFIGS / "trainers").glob("KDPL_*"))
        known = dict.fromkeys([*(c.key for c in FOR_NAMES), *others])
        raise ConfigError(f"The learner '{name}' has no settings: expected {', '.join(known)}.")
    frozen = learner.image_features_are_frozen
    return Learner(name, f"{name} prompts", name, "", STEPS[0] if frozen else FROM_PHOTOS, frozen)


def config_file(learner: Learner, student: str) -> Path:
    """Return the settings of a learner; of others than `FOR_NAMES` published ones, or those of the embedded benchmark.

    Raises:
        ConfigError: there are none.
    """
    folder = CONFIGS / "trainers" / learner.trainer
    prefix = {"RN": "rn50", "ViT-B/16": "vit_b16"}.get("RN" if student.startswith("RN") else student, "vit_b32")
    files = [folder / "emoji.yaml"] if student in EMBEDDED else sorted(folder.glob(f"{prefix}*.yaml"))
    files = [folder / learner.settings] if learner.settings else files
    files = [file for file in files if file.is_file() and "cross_datasets" not in file.name]
    if not files:
        raise ConfigError(f"The learner '{learner.student}' has no settings for '{student}' in '{folder}': choose another one.")
    return files[0]


def vocabulary_for(student: str) -> str:
    """Return the vocabulary of a student: that of the embedded models knows their words alone."""
    return str(EMBEDDED_FOLDER / "vocabulary.txt") if student in EMBEDDED else "imagenet21k"


def settings(task: Task, learner: Learner, photos: Sequence[str], text_size: float) -> CfgNode:
    """Return the configuration of a training.

    Args:
        photos: that are trained on.
        text_size: root mean square of the values in the student's text features, in whose units class vectors move.
    """
    from kdpl.config.defaults import node_of

    folder, node = task.folder(learner), node_of(learner.trainer)
    flags = {
        "DATASET.NAME": "ImageFolder",
        "DATASET.ROOT": str(task.photos),
        "DATASET.IMAGE_LIST": str(folder / "photos.json"),
        "DATASET.TEMPLATE": task.template if task.template != DEFAULT else "",
        "DATASET.CLASSNAMES": "" if task.agnostic else str(task.output / "names.txt"),
        "OUTPUT_DIR": str(folder),
        "SEED": task.seed,
        "TRAINER.NAME": learner.trainer,
        "MODEL.BACKBONE.NAME": task.student,
        "TRAINER.KDPL.TEACHER": task.teacher,
        "TRAINER.KDPL.VOCABULARY": vocabulary_for(task.student) if task.agnostic else "",
    }
    cfg = merged_cfg(("", str(config_file(learner, task.student))), flags, [])
    clip = outline_clip(task.student)
    cfg.INPUT.SIZE = [clip.resolution] * 2
    cfg.INPUT.INTERPOLATION = clip.preprocessing.interpolation
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(clip.mean), list(clip.std)
    batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(photos))
    cfg.OPTIM.MAX_EPOCH = max(LEAST_EPOCHS, math.ceil(steps_of(learner, cfg, len(task.names)) / (len(photos) // batch)))
    if learner.student == "TaskRes" and learner.settings:
        cfg.OPTIM.LR = float(f"{cfg.OPTIM.LR * text_size / TEXT_SIZE:.2g}")
    cfg.TRAINER[node].PREC = cfg.TRAINER.KDPL.PREC = "fp32" if task.student in EMBEDDED else "fp16"
    cfg.TRAINER.KDPL.VIEWS = int(learner.from_features)
    cfg.TRAINER.KDPL.CLASS_AGNOSTIC = task.agnostic
    cfg.DATASET.NUM_SHOTS = -1
    cfg.TRAIN.PRINT_FREQ = 10
    cfg.TEST.NO_TEST = True
    cfg.DATALOADER.NUM_WORKERS = 0 if learner.from_features else min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
    check_values(cfg)
    cfg.freeze()
    return cfg


def steps_of(learner: Learner, cfg: CfgNode, names: int) -> int:
    """Return about how many steps a learner is trained for; `cfg` has the epochs of its settings."""
    if learner.steps:
        return learner.steps
    least, most = STEPS
    return min(most, max(least, cfg.OPTIM.MAX_EPOCH * EPOCHS_AT * names // cfg.DATALOADER.TRAIN_X.BATCH_SIZE))


def photos_for(task: Task, learner: Learner, photos: Sequence[str]) -> list[str]:
    """Return the photos that a learner trains on: class vectors on all, prompts on as many as all epochs see."""
    if learner.student == "TaskRes":
        return list(photos)
    cfg = merged_cfg((str(config_file(learner, task.student)),), {}, [])
    batch, steps = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, steps_of(learner, cfg, len(task.names))
    return list(photos)[: max(batch, steps * batch // LEAST_EPOCHS)]


@dataclass(frozen=True)
class Known:
    """What a training is given: photos with their features, and labels."""

    paths: list[str]
    contents: list[str]
    student: Tensor  # (N, d)
    teacher: Tensor  # (N, e)
    labels: dict[str, str]


class _Bar:
    """A terminal that shows the trainer's lines as progress; the lines themselves are in the log alone."""

    def __init__(self, bar: tqdm):
        self.bar, self._line = bar, ""

    def write(self, text: str) -> int:
        self._line += text
        *lines, self._line = self._line.split("\n")
        for line in lines:
            if step := STEP.search(line):
                epoch, epochs, batch, batches = map(int, step.groups())
                self.bar.total = epochs * batches
                self.bar.update((epoch - 1) * batches + batch - self.bar.n)
        return len(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def isatty(self) -> bool:
        return False


def train(task: Task, learner: Learner, clip: Clip, teacher: Clip, known: Known, rows: Sequence[int], quiet: bool) -> None:
    """Train as `train.py` does, on these rows of what is known, in the learner's own folder.

    Raises:
        ValueError, OSError, FloatingPointError, OccupiedError: as `train.py` reports them.
        ConfigError: the folder has a run with other settings; nothing there is changed.
        Interrupted: by a signal, after the state is saved.
    """
    import kdpl.datasets
    import kdpl.trainers  # noqa: F401
    from kdpl.trainers import run

    from dassl.engine import TRAINER_REGISTRY, build_trainer  # isort: skip
    from dassl.utils import set_random_seed, setup_logger

    images = photos_for(task, learner, [known.paths[i] for i in rows])
    with torch.no_grad(), clip.autocast(frozen=True):
        texts = sentence_features(clip, fill(task.template, task.names), normalize=False).float()  # (C, d)
    cfg = settings(task, learner, images, float(texts.square().mean().sqrt()))
    try:
        run.check_settings(cfg, TRAINER_REGISTRY.get(cfg.TRAINER.NAME), ())
    except OtherRunError as error:  # its further lines are about the flags of train.py
        raise ConfigError(f"{str(error).splitlines()[0]} Choose another output folder (-o), or remove this one.") from None
    with atomic_write(task.folder(learner) / "photos.json", "w") as file:
        json.dump(images, file, indent=1)
    try:
        with doing(f"Learning {learner.title}", 1, "step", quiet) as bar, redirect_stdout(_Bar(bar)):
            setup_logger(cfg.OUTPUT_DIR)
            with closing(sys.stdout.file):
                print("** Config **", cfg, sep="\n")
                set_random_seed(cfg.SEED)
                trainer = build_trainer(cfg)
                trainer.command = {"config_name": "fit", "model_dir": None}
                trainer.loaded_teachers, trainer.labelled = [teacher], _labelled(task, known)
                if learner.from_features:
                    trainer.view_features = _known_features(trainer, known)
                trainer.train()
    except Interrupted as stop:  # it has said so in the log
        print(stop, file=sys.stderr)
        raise


def _labelled(task: Task, known: Known) -> Labelled | None:
    rows = [i for i, path in enumerate(known.paths) if path in known.labels]
    classes = [task.names.index(known.labels[known.paths[i]]) for i in rows]
    return Labelled(known.student[rows], torch.tensor(classes)) if rows else None


def _known_features(trainer: Any, known: Known) -> list[ViewFeatures]:
    """Return the features of a pass as those of a trainer's one fixed view.

    Raises:
        ValueError: a photo has changed since the pass.
    """
    images, place = trainer.training_images, {path: i for i, path in enumerate(known.paths)}
    rows = torch.tensor([place[image.name] for image in images])
    if changed := [image.name for image, row in zip(images, rows, strict=True) if image.content != known.contents[row]]:
        raise ValueError(f"'{changed[0]}' has changed since its features were computed: start the same command again.")
    found = []
    for values in [known.teacher, known.student][: 1 + trainer.student.reads_frozen_image_features]:
        table = FeatureTable(images, 1, values.shape[1], torch.float32)
        table.put(torch.arange(len(images)), torch.zeros(len(images), dtype=torch.long), values[rows])
        found.append(ViewFeatures(_unknown, table, 1, trainer.device))
    return found


def _unknown(images: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(f"{len(images)} photos have no features: the pass over the photos should have computed all.")


class Learned:
    """What a learner has learned, on the student's CLIP."""

    def __init__(self, task: Task, learner: Learner, clip: Clip):
        self.learner, self.task = learner, task
        read = read_bundle(task.folder(learner))
        self.bundle: Bundle = dataclasses.replace(read, classnames=task.names, decision=Decision(), comparison={})
        options = fitting_options(self.bundle, describe(task.student), task.student)
        self.encoder = NameEncoder(learned_student(self.bundle, clip, options, task.student, "Start the fit again."))

    @torch.no_grad()
    def logits(self, paths: Sequence[str], frozen: Tensor) -> Tensor:
        """Return the logits `(N, C)` of photos, whose features by the frozen student are `(N, d)`."""
        encoder, clip, rows = self.encoder, self.encoder.student.clip, []
        prepared = encoder.prepare(self.task.names)
        text = None if encoder.depends_on_images else encoder.features(prepared)
        for part in self._features(paths, frozen).to(clip.device).split(64):
            own = encoder.features(prepared, part) if text is None else text
            rows.append(encoder.logits(prepared, own, part).cpu())
        return torch.cat(rows)

    def _features(self, paths: Sequence[str], frozen: Tensor) -> Tensor:
        """Return the image features: those of the frozen student unless the image tower has learned prompts."""
        if self.encoder.images_are_frozen:
            return frozen
        pixels, rows = self.bundle.preprocessing, []
        normalize = Normalize(pixels.mean, pixels.std)
        for batch in Decoder(pixels).batches([str(self.task.photos / path) for path in paths], 32):
            images = normalize(stacked_pixels(batch).to(self.encoder.student.clip.device))
            rows.append(self.encoder.image_features(images).cpu())
        return torch.cat(rows)
