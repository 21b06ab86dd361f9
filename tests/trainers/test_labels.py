"""No label reaches the gradient of a training without labels: with random ones the prompts come out bit-identical.

The random labels are in the data set, so that they are in every batch, whoever reads it.
"""

import pytest
import torch
from support import ROOT, SHARED, emoji_args, mostly_slow, one_of_each_kind
from support.ranks import run_ranks
from support.trainings import NOUNS, SMALL, assert_all_move, assert_same, build, parameters

from kdpl import students
from kdpl.training.checkpoint import load_checkpoint

LEARNERS = [learner.__name__ for learner in students.LEARNERS]
STEPS = (*SMALL, "OPTIM.MAX_EPOCH", 2, "DATALOADER.NUM_WORKERS", 0)
VIEWS = ("TRAINER.KDPL.VIEWS", 1)  # the second epoch has all features and, with a frozen image tower, no pixels


@pytest.fixture
def agnostic(tmp_path):
    """Options of a class-agnostic training: 20 names of 39."""
    (tmp_path / "nouns.txt").write_text("\n".join(f"{word} {noun}" for word in ["red", "green", "blue"] for noun in NOUNS))
    vocabulary = ("TRAINER.KDPL.VOCABULARY", tmp_path / "nouns.txt", "TRAINER.KDPL.K_MAX", 20)
    return ("TRAINER.KDPL.CLASS_AGNOSTIC", True, *vocabulary)


def both_labels(trainer, folder, *options):
    """Train on the true labels and on random ones; return the prompts of both."""
    from support.random_labels import register_with_random_labels

    register_with_random_labels(trainer, f"RandomLabels_{trainer}")
    runs = [
        build(trainer, folder / name, *STEPS, *options, "TRAINER.NAME", name) for name in (trainer, f"RandomLabels_{trainer}")
    ]
    labels = [torch.cat([batch["label"] for batch in run.train_loader_x]) for run in runs]
    images = [[path for batch in run.train_loader_x for path in batch["impath"]] for run in runs]
    assert images[0] == images[1] and (labels[0] == labels[1]).float().mean() < 0.2, "the same images with other labels"
    before = [parameters(run) for run in runs]
    assert_same(*before)
    for run in runs:
        run.train()
    after = [parameters(run) for run in runs]
    assert_all_move(before[0], after[0])
    return after


@pytest.mark.parametrize("learner", mostly_slow(LEARNERS, "CoOp"))
def test_labels_never_reach_the_gradient(learner, tmp_path):
    assert_same(*both_labels(f"KDPL_{learner}", tmp_path))


@pytest.mark.parametrize("learner", mostly_slow(LEARNERS, sample=("CoOp", "VPT")))
def test_labels_never_reach_the_gradient_with_views(learner, tmp_path):
    assert_same(*both_labels(f"KDPL_{learner}", tmp_path, *VIEWS))


@pytest.mark.parametrize("learner", mostly_slow(SHARED, sample=("CoCoOp", "MaPLe")))
def test_labels_never_reach_the_gradient_when_the_classes_are_unknown(learner, agnostic, tmp_path):
    assert_same(*both_labels(f"KDPL_{learner}", tmp_path, *agnostic))


@pytest.mark.parametrize("learner", mostly_slow(one_of_each_kind(SHARED), sample=("PromptSRC",)))
def test_labels_never_reach_the_gradient_when_the_classes_are_unknown_with_views(learner, agnostic, tmp_path):
    assert_same(*both_labels(f"KDPL_{learner}", tmp_path, *agnostic, *VIEWS))


@pytest.mark.slow
def test_labels_do_reach_the_gradient_of_a_supervised_training(tmp_path):
    """What the tests above look at can change."""
    labelled, random = both_labels("CoOp", tmp_path)
    assert not torch.equal(labelled["ctx"], random["ctx"])


@pytest.mark.parametrize(
    ("learner", "aware"),
    mostly_slow(
        [pytest.param("CoOp", True, id="CoOp-True"), pytest.param("PromptSRC", False, id="PromptSRC-False")],
        sample=("CoOp-True",),
    ),
)
def test_labels_never_reach_the_gradient_on_two_ranks(learner, aware, agnostic, tmp_path):
    found = []
    for program in ("train.py", "tests/support/random_labels.py"):
        output = tmp_path / program.replace("/", " ")
        options = (*STEPS, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", *(() if aware else agnostic))
        process = run_ranks(2, ROOT / program, *emoji_args(f"KDPL_{learner}", output), *options)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        (checkpoint,) = output.rglob("model.pth.tar-2")
        found.append(load_checkpoint(checkpoint)["state_dict"])
    assert_same(*found)
