"""Data sets, transforms, samplers and loaders of the bundled engine."""

import random
from pathlib import Path

import fallback_pieces as pieces
import numpy as np
import pytest
import torch
from PIL import Image

# isort: split
from dassl.data import DataManager
from dassl.data.datasets import DatasetBase, Datum
from dassl.data.transforms import build_transform

from kdpl.training.batches import EpochLoader


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    pieces.make_images(folder)
    return folder


@pytest.fixture
def cfg(root, tmp_path):
    return pieces.small_cfg(root, tmp_path)


@pytest.fixture
def images(root) -> list[Datum]:
    return pieces.read_split(root, "train")


def test_a_datum_needs_an_image_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg.*DATASET\.ROOT"):
        Datum(str(tmp_path / "gone.jpg"))


def test_an_empty_or_contradictory_training_set_is_refused(images):
    with pytest.raises(ValueError, match="train_x is empty"):
        DatasetBase(train_x=[])
    with pytest.raises(ValueError, match="Label 0 has two class names, 'red' and 'crimson'"):
        DatasetBase(train_x=[images[0], Datum(images[1].impath, 0, 0, "crimson")])


def test_shots_are_drawn_class_by_class_with_pythons_random(images):
    dataset = DatasetBase(train_x=images)
    random.seed(3)
    shots = dataset.generate_fewshot_dataset(images, num_shots=2)
    random.seed(3)
    assert shots == [item for start in (0, 8, 16) for item in random.sample(images[start : start + 8], 2)]
    assert dataset.generate_fewshot_dataset(images[:3], num_shots=5) == images[:3], "a small class is taken whole"


def picture(width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_test_images_are_resized_at_the_smaller_edge_cropped_and_normalised(cfg, capsys):
    cfg.INPUT.SIZE = (12, 16)
    cfg.INPUT.INTERPOLATION = "bicubic"
    image = picture(40, 30)
    pixels = np.asarray(image.resize((21, 16), Image.Resampling.BICUBIC).crop((2, 2, 18, 14))) / 255
    expected = (pixels - cfg.INPUT.PIXEL_MEAN) / cfg.INPUT.PIXEL_STD
    tensor = build_transform(cfg, is_train=False)(image)
    assert np.allclose(tensor.permute(1, 2, 0), expected, atol=1e-6)


def test_training_leaves_out_the_last_short_batch_only_if_there_is_a_full_one(cfg, capsys):
    assert [len(b["label"]) for b in DataManager(cfg).train_loader_x] == [5, 5, 5, 5]
    cfg.DATALOADER.TRAIN_X.BATCH_SIZE = 100
    assert [len(b["label"]) for b in DataManager(cfg).train_loader_x] == [24]
    assert [len(b["label"]) for b in DataManager(cfg).test_loader] == [7, 7, 7, 3]


def epochs(cfg, workers: int, seed: int = 5, count: int = 2) -> list[torch.Tensor]:
    """Return the training images as a trainer sees them."""
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = EpochLoader(DataManager(cfg).train_loader_x, seed)
    batches = []
    for loader.epoch in range(count):
        for batch in loader:
            batches.append(batch["img"])
            torch.rand(3)  # a model that draws, too
    return batches


def test_a_seed_gives_the_same_batches_with_any_number_of_workers(cfg, capsys):
    here = epochs(cfg, workers=0)
    assert torch.equal(torch.stack(here), torch.stack(epochs(cfg, workers=0)))
    assert torch.equal(torch.stack(here), torch.stack(epochs(cfg, workers=2)))
