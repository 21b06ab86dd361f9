"""Small real pieces for the tests of the bundled engine: image files, a data set, a configuration, a trainer.

Imported before anything of `dassl`: it makes that name importable, and skips these tests where a Dassl is installed.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import kdpl

if "bundled" not in kdpl.dassl_in_use():
    pytest.skip("a Dassl is installed, the bundled engine is not in use", allow_module_level=True)

# isort: split
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer

torch.set_num_threads(1)

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}
PER_SPLIT = 8


def make_images(root: Path) -> None:
    """Write noisy images of each colour: <root>/<split>/<colour>/<number>.png, 20 by 24 pixels."""
    noise = np.random.default_rng(0)
    for split in ("train", "val", "test"):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(PER_SPLIT):
                pixels = np.clip(colour + noise.normal(0, 25, (20, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")


def read_split(root: Path, split: str) -> list[Datum]:
    return [
        Datum(str(root / split / name / f"{number}.png"), label=label, domain=number % 2, classname=name)
        for label, name in enumerate(COLOURS)
        for number in range(PER_SPLIT)
    ]


@DATASET_REGISTRY.register()
class Colours(DatasetBase):
    """The images of `make_images`."""

    def __init__(self, cfg):
        root = Path(cfg.DATASET.ROOT)
        train = self.generate_fewshot_dataset(read_split(root, "train"), num_shots=cfg.DATASET.NUM_SHOTS)
        super().__init__(train_x=train, val=read_split(root, "val"), test=read_split(root, "test"))


@TRAINER_REGISTRY.register()
class LinearProbe(TrainerX):
    """A linear layer on the pixels."""

    def build_model(self):
        height, width = self.cfg.INPUT.SIZE
        self.model = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Dropout(0.2), torch.nn.Linear(3 * height * width, self.num_classes)
        ).to(self.device)
        self.optim = build_optimizer(self.model, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("probe", self.model, self.optim, self.sched)

    def forward_backward(self, batch):
        images, labels, _ = self.parse_batch_train(batch)
        loss = torch.nn.functional.cross_entropy(self.model(images), labels)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


def small_cfg(root: Path, output: Path, *overrides):
    """A configuration for the pieces above; `overrides` are keys and values in turn."""
    cfg = get_cfg_default()
    cfg.merge_from_list([
        "OUTPUT_DIR", str(output), "SEED", 1, "USE_CUDA", False, "VERBOSE", False,
        "INPUT.SIZE", (8, 8), "INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize"),
        "DATASET.ROOT", str(root), "DATASET.NAME", "Colours",
        "DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 5, "DATALOADER.TEST.BATCH_SIZE", 7,
        "OPTIM.NAME", "sgd", "OPTIM.LR", 0.002, "OPTIM.MAX_EPOCH", 3, "OPTIM.LR_SCHEDULER", "cosine",
        "OPTIM.WARMUP_EPOCH", 1, "OPTIM.WARMUP_TYPE", "constant",
        "TRAINER.NAME", "LinearProbe",
    ])  # fmt: skip
    cfg.merge_from_list([str(v) if isinstance(v, Path) else v for v in overrides])
    return cfg
