"""Training with labels from features: what a frozen tower gives for images that stay the same is computed once."""

import pytest
from support import mostly_slow
from support.trainings import SMALL, assert_same, build, train

from kdpl.trainers.distill import SupervisedTrainer

SAME = ("INPUT.TRANSFORMS", ("center_crop", "normalize"), "DATALOADER.NUM_WORKERS", 0)


def encoded(monkeypatch) -> list[int]:
    """Return a list to which the number of images is added whenever the frozen tower reads some in a training."""
    from kdpl.students import Student

    counts, compute = [], Student.frozen_image_features
    monkeypatch.setattr(Student, "frozen_image_features", lambda self, x: counts.append(len(x)) or compute(self, x))
    return counts


@pytest.mark.parametrize("learner", mostly_slow(["TaskRes", "CoOp", "CoCoOp"]))
def test_features_are_computed_once_and_the_prompts_are_the_same(learner, tmp_path, monkeypatch):
    counts = encoded(monkeypatch)
    once, learned = train(learner, tmp_path / "once", *SMALL, *SAME)
    assert 0 < sum(counts) <= 5 * 6, "30 images in batches of 6, in three epochs"
    monkeypatch.setattr(SupervisedTrainer, "fixed_views", 0)
    always, expected = train(learner, tmp_path / "always", *SMALL, *SAME)
    assert_same(learned, expected)
    assert once.manifest.config == always.manifest.config


@pytest.mark.parametrize(
    "learner, options",
    [
        ("TaskRes", ("INPUT.TRANSFORMS", ("random_flip", "normalize"))),
        ("VPT", ("INPUT.TRANSFORMS", ("center_crop", "normalize"))),
    ],
)
def test_images_that_change_or_prompts_in_the_image_tower_need_every_epoch(learner, options, tmp_path):
    assert not build(learner, tmp_path, *SMALL, *options).train_loader_x.views


def test_an_overridden_step_sees_the_images(tmp_path, monkeypatch):
    run = build("TaskRes", tmp_path, *SMALL, *SAME)
    assert run.train_loader_x.views == 1
    monkeypatch.setattr(type(run), "compute_loss", lambda self, batch: None)
    monkeypatch.setattr(type(run), "parse_batch_train", lambda self, batch: None, raising=False)
    assert not run.fixed_views


def test_an_image_in_place_of_an_unreadable_one_has_its_own_label(tmp_path, monkeypatch):
    run = build("TaskRes", tmp_path, *SMALL, *SAME)
    dataset, read = run.train_loader_x.dataset, type(run.train_loader_x.dataset).__getitem__
    items = dataset.data_source
    monkeypatch.setattr(type(dataset), "__getitem__", lambda self, i: read(self, 4 if i == 3 and self is dataset else i))
    run.train()
    assert run.training_labels[3] == items[4].label != items[3].label
    assert [int(n) for i, n in enumerate(run.training_labels) if i != 3] == [d.label for i, d in enumerate(items) if i != 3]
