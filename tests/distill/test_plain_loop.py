"""README's loop without a framework, run as printed, learns as much as the trainer."""

import re
import shutil

import pytest
import torch
from support import ROOT, config

from kdpl.distill import Distillation
from kdpl.training.batches import read_image

pytestmark = pytest.mark.slow
DATASET = "emoji_leisure"
SETTINGS = ("DATASET.NUM_SHOTS", 8, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAIN.PRINT_FREQ", 1000)
SETTINGS += ("USE_CUDA", False, "OPTIM.LR", 0.005, "OPTIM.MAX_EPOCH", 20, "OPTIM.WARMUP_EPOCH", -1)  # of the loop


def loop() -> str:
    """Return README's lines."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", text, re.S) if "objective(images)" in b)
    return block


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """KDPL_CoOp after a training with the settings of the loop."""
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    run = build_trainer(config("KDPL_CoOp", DATASET, tmp_path_factory.mktemp("run"), "--seed", 1, *SETTINGS))
    set_random_seed(1)
    run.train()
    return run


@pytest.fixture(scope="module")
def photos(trained, tmp_path_factory):
    """A folder with the trainer's training images, without their labels, and its class names."""
    run, folder = trained, tmp_path_factory.mktemp("loop")
    (folder / "photos" / "unlabelled").mkdir(parents=True)
    for i, item in enumerate(run.dm.dataset.train_x):
        shutil.copy(item.impath, folder / "photos" / "unlabelled" / f"{i}.png")
    (folder / "names.txt").write_text("\n".join(run.class_names))
    return folder


def images_of(run) -> torch.Tensor:
    """Return the trainer's test images, normalised, `(N, 3, H, W)`."""
    transform = run.test_loader.dataset.transform
    return run.normalize(torch.stack([transform(read_image(item.impath)) for item in run.dm.dataset.test]))


@torch.no_grad()
def divergence(student, run) -> float:
    """Return a student's divergence from the teacher on the trainer's test images."""
    return Distillation(student, run.objective.teacher, run.class_names)(images_of(run))[0].item()


def run_lines(lines: str, photos, monkeypatch):
    """Run the lines in the folder and return their student."""
    monkeypatch.chdir(photos)
    torch.manual_seed(0)
    scope: dict = {}
    exec(lines, scope)
    return scope["student"]


@pytest.mark.slow
def test_the_lines_learn_as_much_as_the_trainer(trained, photos, monkeypatch):
    """Of what it can learn: the teacher's distribution on the test images."""
    untrained = divergence(run_lines(loop().replace("in range(20)", "in range(0)"), photos, monkeypatch), trained)
    learned = untrained - divergence(trained.student, trained)
    assert learned > 0.05 * untrained
    assert untrained - divergence(run_lines(loop(), photos, monkeypatch), trained) == pytest.approx(learned, rel=0.25)
