"""README's loop without a framework, run as printed, reaches the accuracy and the divergence of the trainer."""

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
    """KDPL_CoOp after a training with the settings of the loop, and its accuracy."""
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    run = build_trainer(config("KDPL_CoOp", DATASET, tmp_path_factory.mktemp("run"), "--seed", 1, *SETTINGS))
    set_random_seed(1)
    run.train()
    return run, run.last_result["accuracy"]


@pytest.fixture(scope="module")
def photos(trained, tmp_path_factory):
    """A folder with the trainer's training images, without their labels, and its class names."""
    run, _ = trained
    folder = tmp_path_factory.mktemp("loop")
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
def hits(student, run) -> torch.Tensor:
    """Return which of the trainer's test images a student classifies correctly, `(N,)`."""
    logits = student(images_of(run), student.prepare(run.class_names)).logits
    return logits.argmax(1) == torch.tensor([item.label for item in run.dm.dataset.test])


@torch.no_grad()
def divergence(student, run) -> float:
    """Return a student's divergence from the teacher on the trainer's test images."""
    return Distillation(student, run.objective.teacher, run.class_names)(images_of(run))[0].item()


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether two accuracies on the same images differ by more than sampling error (McNemar, three standard errors).

    Only the images that one student gets right and the other wrong count. If both are equally good, each such image favours
    either with probability 1/2, so the difference of the two counts has mean 0 and the sum of the counts as its variance.
    """
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return abs(only_a - only_b) > 3 * (only_a + only_b) ** 0.5


def run_lines(lines: str, photos, monkeypatch):
    """Run the lines in the folder and return their student."""
    monkeypatch.chdir(photos)
    torch.manual_seed(0)
    scope: dict = {}
    exec(lines, scope)
    return scope["student"]


@pytest.mark.slow
def test_the_lines_reach_the_accuracy_of_the_trainer(trained, photos, monkeypatch):
    run, accuracy = trained
    expected = hits(run.student, run)
    assert 100 * expected.float().mean() == pytest.approx(accuracy), "measured as the trainer does"
    student = run_lines(loop(), photos, monkeypatch)
    assert not differ(hits(student, run), expected)
    untrained = divergence(run_lines(loop().replace("in range(20)", "in range(0)"), photos, monkeypatch), run)
    learned = untrained - divergence(run.student, run)
    assert untrained - divergence(student, run) == pytest.approx(learned, rel=0.25) and learned > 0.05 * untrained
