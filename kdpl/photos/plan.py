"""What `kdpl fit` will do with a folder of photos: which of them are held out, the learner, and how long it trains."""

import argparse
import json
import math
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from yacs.config import CfgNode

from kdpl.clip.loading import describe, outline_clip
from kdpl.clip.names import EMBEDDED
from kdpl.common.files import atomic_write
from kdpl.common.images import unreadable
from kdpl.common.images.files import list_images, media_line
from kdpl.config.checks import check_values
from kdpl.config.choices import ConfigError
from kdpl.config.command_line import CONFIGS
from kdpl.config.merging import merged_cfg
from kdpl.datasets.emoji.scenes import EMBEDDED as EMBEDDED_FOLDER
from kdpl.text.templates import DEFAULT

HELD_OUT_SHARE = 0.2
HELD_OUT = (20, 400)  # at least (or a half of the photos), at most


@dataclass(frozen=True)
class Effort:
    """How much is spent on a fit."""

    learner: str
    steps: int  # of the training, about
    epochs: tuple[int, int]  # at least, at most
    photos_per_name: int  # that are trained on, at most
    views: int  # fixed views of a photo, whose teacher features are computed once; 0: augmented afresh each time


EFFORTS = {
    "quick": Effort("CoOp", 200, (5, 20), 8, 1),
    "normal": Effort("CoOp", 1000, (10, 50), 16, 4),
    "best": Effort("PromptSRC", 4000, (20, 50), 64, 0),
}
LEAST_PHOTOS = 200  # that are trained on, however few names there are


@dataclass(frozen=True)
class Plan:
    """A fit, before it is started; photos are relative to `photos`."""

    photos: Path
    names: list[str]
    output: Path
    student: str
    teacher: str
    learner: str
    effort: Effort
    template: str
    seed: int
    train: list[str]
    held_out: list[str]
    skipped: dict[Path, str]  # photos that cannot be read, with the reasons
    media: str  # pictures and films that are not read

    @property
    def agnostic(self) -> bool:
        """Whether names of a vocabulary are learned from: with a single name there is nothing to distil."""
        return len(self.names) == 1

    def file(self, name: str) -> Path:
        return self.output / name

    def write(self) -> None:
        """Write the lists of photos and names into the output folder.

        Raises:
            ConfigError: the folder has a fit of other photos or names.
        """
        for name, content in (
            ("train_photos.json", self.train),
            ("held_out_photos.json", self.held_out),
            ("names.json", self.names),
        ):
            path = self.file(name)
            if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != content:
                raise ConfigError(
                    f"'{self.output}' is the fit of other photos or names ('{name}' differs): choose another output folder "
                    "(-o), or remove this one."
                )
            with atomic_write(path, "w") as file:
                json.dump(content, file, indent=0)
        with atomic_write(self.file("names.txt"), "w") as file:
            file.write("\n".join([*self.names, ""]))

    def cfg(self) -> CfgNode:
        """Return the configuration of the training."""
        trainer = f"KDPL_{self.learner}"
        flags = {
            "DATASET.NAME": "ImageFolder",
            "DATASET.ROOT": str(self.photos),
            "DATASET.IMAGE_LIST": str(self.file("train_photos.json")),
            "DATASET.TEMPLATE": self.template if self.template != DEFAULT else "",
            "DATASET.CLASSNAMES": "" if self.agnostic else str(self.file("names.txt")),
            "OUTPUT_DIR": str(self.output),
            "SEED": self.seed,
            "TRAINER.NAME": trainer,
            "MODEL.BACKBONE.NAME": self.student,
            "TRAINER.KDPL.TEACHER": self.teacher,
            "TRAINER.KDPL.VOCABULARY": vocabulary_for(self.student) if self.agnostic else "",
        }
        cfg = merged_cfg(("", str(config_file(trainer, self.student))), flags, [])
        clip = outline_clip(self.student)
        batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(self.train))
        least, most = self.effort.epochs
        cfg.INPUT.SIZE = [clip.resolution] * 2
        cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = list(clip.mean), list(clip.std)
        cfg.OPTIM.MAX_EPOCH = min(most, max(least, math.ceil(self.effort.steps * batch / len(self.train))))
        cfg.TRAINER.KDPL.VIEWS = self.effort.views
        cfg.TRAINER.KDPL.CLASS_AGNOSTIC = self.agnostic
        cfg.DATASET.NUM_SHOTS = -1
        cfg.TRAIN.PRINT_FREQ = 1
        cfg.TEST.NO_TEST = True
        cfg.DATALOADER.NUM_WORKERS = min(cfg.DATALOADER.NUM_WORKERS, os.cpu_count() or 1)
        check_values(cfg)
        cfg.freeze()
        return cfg


def make_plan(args: argparse.Namespace, names: Sequence[str]) -> Plan:
    """Return the plan of a fit.

    Args:
        args: of `kdpl fit`, with photos, output, student and teacher filled in.

    Raises:
        ConfigError: there are too few photos, or the learner cannot be used with the student.
    """
    photos, spent = Path(args.photos).absolute(), EFFORTS[args.effort]
    learner = args.variant or (spent.learner if describe(args.student).is_vit else "CoOp")
    config_file(f"KDPL_{learner}", args.student)  # refused before anything is written
    if not photos.is_dir():
        raise ConfigError(f"PHOTOS '{photos}' is not a folder: expected the folder with your photos.")
    listing = list_images(photos)
    found = [path.relative_to(photos).as_posix() for path in listing.images]
    random.Random(args.seed).shuffle(found)
    held, most = _held_out(len(found)), max(LEAST_PHOTOS, spent.photos_per_name * len(names))
    chosen = found[: held + most]
    bad = unreadable([photos / name for name in chosen], decode=False)
    chosen = [name for name in chosen if photos / name not in bad]
    if len(chosen) < 4:
        raise ConfigError(
            f"PHOTOS '{photos}' has {len(chosen)} photos that can be read, expected at least 4, and better some hundred: of "
            "few, half are held out."
        )
    held = _held_out(len(chosen)) if len(chosen) < held + most else held
    return Plan(
        photos, list(names), Path(args.output), args.student, args.teacher, learner, spent, args.template, args.seed,
        sorted(chosen[held:]), sorted(chosen[:held]), {**listing.unreadable, **bad}, media_line(listing.media),
    )  # fmt: skip


def _held_out(count: int) -> int:
    least, most = HELD_OUT
    return min(most, max(round(HELD_OUT_SHARE * count), min(least, count // 2)))


def config_file(trainer: str, student: str) -> Path:
    """Return the settings of a trainer that suit a student: published ones, or those of the embedded benchmark.

    Raises:
        ConfigError: the trainer has none.
    """
    folder = CONFIGS / "trainers" / trainer
    prefix = {"RN": "rn50", "ViT-B/16": "vit_b16"}.get("RN" if student.startswith("RN") else student, "vit_b32")
    files = [folder / "emoji.yaml"] if student in EMBEDDED else sorted(folder.glob(f"{prefix}*.yaml"))
    files = [file for file in files if file.is_file() and "cross_datasets" not in file.name]
    if not files:
        known = sorted(p.name.removeprefix("KDPL_") for p in (CONFIGS / "trainers").glob("KDPL_*"))
        raise ConfigError(f"The learner '{trainer.removeprefix('KDPL_')}' has no settings for '{student}': {', '.join(known)}.")
    return files[0]


def vocabulary_for(student: str) -> str:
    """Return the vocabulary of a student: that of the embedded models knows their words alone."""
    return str(EMBEDDED_FOLDER / "vocabulary.txt") if student in EMBEDDED else "imagenet21k"
