"""Learners that are trained, for `kdpl fit --learn NAME` and `--best`: the existing trainers, from features that are known.

A training is stopped and resumed as one of `train.py`, which has all other learners.
"""

import hashlib
import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from kdpl.bundle import Decision, read_bundle
from kdpl.classifier.classifier import Classifier
from kdpl.common.files import atomic_write
from kdpl.common.safe_text import read_json
from kdpl.config.checks import check_values
from kdpl.config.command_line import CONFIGS
from kdpl.config.defaults import merged_cfg
from kdpl.config.keys import ConfigError
from kdpl.distill.objective import Labelled
from kdpl.distill.views import ViewFeatures
from kdpl.photos.commands import doing
from kdpl.photos.pile import Pile, Words
from kdpl.text.prompts import sentence_features
from kdpl.text.templates import DEFAULT, fill

LEAST_EPOCHS = 12  # of any number of photos
EPOCHS_AT = 16  # photos of each name, for which the epochs of the settings hold
STEPS = (300, 3000)  # of a training: at least, at most
TEXT_SIZE = 1.9  # root mean square of the values in the text features for which the rate of class vectors holds


@dataclass(frozen=True)
class Learner:
    """Something that is trained."""

    key: str  # its name in --learn and of its folder
    title: str  # its name in tables
    student: str  # the class
    settings: str  # its configuration file in the trainer's folder

    @property
    def trainer(self) -> str:
        return f"KDPL_{self.student}"


LEARNERS = (
    Learner("TaskRes", "class vectors", "TaskRes", "photos.yaml"),
    Learner("CSC", "class-specific prompts", "CoOp", "photos.yaml"),
    Learner("CoOp", "shared prompts", "CoOp", "photos_shared.yaml"),
)


@dataclass(frozen=True)
class Task:
    """What is learned, from which photos of a pile."""

    pile: Pile
    rows: Sequence[int]  # of the photos that are learned from
    names: list[str]
    labels: Mapping[str, str]  # the classes that are known, by path
    words: Words
    seed: int
    folder: Path  # of all that is trained

    def begin(self) -> None:
        """Record what the folder is for.

        Raises:
            ConfigError: it has what was trained for other photos, names or settings; nothing there is changed.
        """
        words, record = self.words, self.folder / "fit.json"
        facts = [self.names, words.template, self.seed, words.student_name, words.teacher_name, sorted(self.labels.items())]
        digest = hashlib.sha256(json.dumps([*facts, [self.pile.contents[i] for i in self.rows]]).encode()).hexdigest()
        if record.is_file() and read_json(record) != digest:
            raise ConfigError(f"'{self.folder}' has what was trained for other photos, names or settings: choose another -o.")
        with atomic_write(record, "w") as file:
            json.dump(digest, file)
        with atomic_write(self.folder / "names.txt", "w") as file:
            file.write("\n".join([*self.names, ""]))


def settings(task: Task, learner: Learner) -> tuple[CfgNode, list[str]]:
    """Return the configuration of a training, and the photos: class vectors on all, prompts on as many as all epochs see."""
    from kdpl.config.defaults import node_of

    words, folder = task.words, task.folder / learner.key
    flags = {
        "DATASET.NAME": "ImageFolder",
        "DATASET.ROOT": task.pile.facts["folder"],
        "DATASET.IMAGE_LIST": str(folder / "images.json"),
        "DATASET.TEMPLATE": words.template if words.template != DEFAULT else "",
        "DATASET.CLASSNAMES": str(task.folder / "names.txt"),
        "DATASET.NUM_SHOTS": -1,
        "OUTPUT_DIR": str(folder),
        "SEED": task.seed,
        "TRAINER.NAME": learner.trainer,
        "MODEL.BACKBONE.NAME": words.student_name,
        "TRAINER.KDPL.TEACHER": words.teacher_name,
        "TRAINER.KDPL.VIEWS": 1,
        "TRAIN.PRINT_FREQ": 10,
        "TEST.NO_TEST": True,
        "DATALOADER.NUM_WORKERS": 0,
    }
    cfg = merged_cfg(("", str(CONFIGS / "trainers" / learner.trainer / learner.settings)), flags, [])
    batch, epochs = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH
    steps = min(STEPS[1], max(STEPS[0], epochs * EPOCHS_AT * len(task.names) // batch))
    photos = [task.pile.paths[i] for i in task.rows]
    if learner.key != "TaskRes":
        photos = photos[: max(batch, steps * batch // LEAST_EPOCHS)]
    cfg.OPTIM.MAX_EPOCH = max(LEAST_EPOCHS, math.ceil(steps / (len(photos) // min(batch, len(photos)))))
    clip = words.student
    if learner.key == "TaskRes":  # class vectors move in units of the text features
        with torch.no_grad(), clip.autocast(frozen=True):
            texts = sentence_features(clip, fill(words.template, task.names), normalize=False).float()  # (C, d)
        cfg.OPTIM.LR = float(f"{cfg.OPTIM.LR * float(texts.square().mean().sqrt()) / TEXT_SIZE:.2g}")
    cfg.INPUT.SIZE = [clip.resolution] * 2
    cfg.INPUT.INTERPOLATION = clip.preprocessing.interpolation
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(clip.mean), list(clip.std)
    cfg.TRAINER[node_of(learner.trainer)].PREC = cfg.TRAINER.KDPL.PREC = words.precision
    check_values(cfg)
    cfg.freeze()
    return cfg, photos


class _Steps(io.StringIO):
    """What a trainer prints is in its log; of it, some epochs are shown, on stderr."""

    def write(self, text: str) -> int:
        if text.startswith("epoch [") and "0/" in text and " batch [1/" in text:
            print(text.partition(" batch")[0], file=sys.stderr, flush=True)
        return len(text)


def train(task: Task, learner: Learner, quiet: bool) -> None:
    """Train as `train.py` does, in the learner's own folder.

    Raises:
        ValueError, OSError, FloatingPointError, OccupiedError: as `train.py` reports them.
        Interrupted: by a signal, after the state is saved.
    """
    import kdpl.datasets
    import kdpl.trainers  # noqa: F401

    from dassl.engine import build_trainer  # isort: skip
    from dassl.utils import set_random_seed, setup_logger

    cfg, photos = settings(task, learner)
    with atomic_write(task.folder / learner.key / "images.json", "w") as file:
        json.dump(photos, file, indent=1)
    with doing(f"Learning {learner.title}", quiet=quiet), redirect_stdout(io.StringIO() if quiet else _Steps()):
        setup_logger(cfg.OUTPUT_DIR)
        with closing(sys.stdout.file):
            print("** Config **", cfg, sep="\n")
            set_random_seed(cfg.SEED)
            trainer = build_trainer(cfg)
            trainer.command = {"config_name": "fit", "model_dir": None}
            trainer.loaded_teachers, trainer.labelled = [task.words.teacher], _labelled(task)
            trainer.view_features = _known_features(trainer, task.pile)
            trainer.train()


def _labelled(task: Task) -> Labelled | None:
    pile = task.pile
    rows = [i for i, path in enumerate(pile.paths) if path in task.labels]
    classes = [task.names.index(task.labels[pile.paths[i]]) for i in rows]
    return Labelled(pile.unit()[0][rows], torch.tensor(classes)) if rows else None


def _known_features(trainer: Any, pile: Pile) -> list[ViewFeatures]:
    """Return the features of a pass as those of a trainer's one fixed view.

    Raises:
        ValueError: a photo has changed since the pass.
    """
    images, place = trainer.training_images, {path: i for i, path in enumerate(pile.paths)}
    rows = torch.tensor([place[image.name] for image in images])
    if changed := [image.name for image, row in zip(images, rows, strict=True) if image.content != pile.contents[row]]:
        raise ValueError(f"'{changed[0]}' has changed since its features were computed: start the same command again.")
    found = []
    for values in pile.unit()[::-1][: 1 + trainer.student.reads_frozen_image_features]:
        features = ViewFeatures(images, 1, values.shape[1], torch.float32, device=trainer.device)  # no image is asked about
        features.put(torch.arange(len(images)), torch.zeros(len(images), dtype=torch.long), values[rows])
        found.append(features)
    return found


class Learned:
    """What a learner has learned, on the student's CLIP."""

    def __init__(self, task: Task, learner: Learner):
        self.learner, self.features = learner, task.pile.unit()[0]
        read = read_bundle(task.folder / learner.key)
        self.bundle = replace(read, classnames=task.names, decision=Decision(), comparison={})
        self.classifier = Classifier(self.bundle, task.words.student.device)

    def logits(self, rows: Sequence[int]) -> Tensor:
        """Return the logits `(n, C)` of photos of the pile."""
        features = self.features[list(rows)].to(self.classifier.device)
        return torch.cat([self.classifier.logits_of(part) for part in features.split(64)])
