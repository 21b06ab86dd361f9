"""Fixed views and the features kept of them: the same to the last bit as computing them afresh, and found again."""

import numpy as np
import PIL
import pytest
import torch
import torchvision
import torchvision.transforms as T
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support import mostly_slow
from support.trainings import assert_same, build, parameters

from kdpl.clip.model import Normalize
from kdpl.distill.teacher import Teacher
from kdpl.distill.views import ImageFile, ViewFeatures
from kdpl.students import Student
from kdpl.training.batches import bytes_transform

VIEWS = ("TRAINER.KDPL.VIEWS", 2, "OPTIM.MAX_EPOCH", 4, "TEST.NO_TEST", True)


def run(trainer, output, *options, **kwargs):
    run = build(trainer, output, *VIEWS, *options, **kwargs)
    run.train()
    return run


def losses(run):
    return [[row[k] for k in row] for row in run.progress.rows]


def forget(monkeypatch):
    """Have every feature computed afresh whenever it is asked for."""
    get = ViewFeatures.get

    def get_once(self, index, view):
        features = get(self, index, view)
        self.known[:] = False
        return features

    monkeypatch.setattr(ViewFeatures, "get", get_once)


@pytest.mark.parametrize(
    "trainer",
    mostly_slow(["KDPL_CoOp", "KDPL_CoCoOp", "KDPL_PromptSRC", "KDPL_MaPLe"], sample=("KDPL_CoCoOp", "KDPL_PromptSRC")),
)
def test_warm_views_give_the_same_losses_as_the_same_views_computed_afresh(trainer, tmp_path, monkeypatch):
    warm = run(trainer, tmp_path / "warm")
    forget(monkeypatch)
    fresh = run(trainer, tmp_path / "fresh")
    assert losses(warm) == losses(fresh)
    assert_same(parameters(warm), parameters(fresh))


@pytest.mark.parametrize("trainer", mostly_slow(["KDPL_CoOp", "KDPL_CoCoOp"], "KDPL_CoOp"))
def test_after_the_first_pass_neither_a_vision_tower_nor_an_image_is_touched(trainer, tmp_path):
    kdpl = build(trainer, tmp_path, *VIEWS)
    run_epoch = kdpl.run_epoch

    def epoch():
        run_epoch()
        if kdpl.epoch == 1:  # both views of every image were seen, those that short batches leave out too
            kdpl.train_loader_x.dataset.__class__.__getitem__ = None
            kdpl.clip.image_features = kdpl.objective.teacher.clip.image_features = None

    item = kdpl.train_loader_x.dataset.__class__.__getitem__
    kdpl.run_epoch = epoch
    try:
        kdpl.train()
    finally:
        kdpl.train_loader_x.dataset.__class__.__getitem__ = item
    assert kdpl.finished_epochs == 4


def test_views_are_augmented_and_differ_between_images_views_and_view_seeds(tmp_path):
    pixels = {}
    for seed in (0, 1):
        kdpl = build("KDPL_VPT", tmp_path, *VIEWS, "TRAINER.KDPL.VIEW_SEED", seed)
        for epoch in (0, 1, 2):
            kdpl.train_loader_x.epoch = epoch
            for batch in kdpl.train_loader_x:
                for i, v, image in zip(batch["index"].tolist(), batch["view"].tolist(), batch["img"], strict=True):
                    pixels.setdefault((seed, i, v), []).append(image)
    assert any(len(views) > 1 for views in pixels.values())
    assert all(torch.equal(views[0], other) for views in pixels.values() for other in views)
    i = next(i for seed, i, view in pixels if (1, i, 0) in pixels and (0, i, 1) in pixels)
    first, second, other = pixels[0, i, 0][0], pixels[0, i, 1][0], pixels[1, i, 0][0]
    assert not torch.equal(first, second) and not torch.equal(first, other)


@pytest.mark.slow
def test_a_later_run_of_another_variant_or_seed_finds_the_features(tmp_path, capsys, monkeypatch):
    kept = ("TRAINER.KDPL.CACHE_DIR", tmp_path / "cache", "DATALOADER.NUM_WORKERS", 2)
    cold = run("KDPL_CoOp", tmp_path / "cold", *kept)
    capsys.readouterr()
    monkeypatch.setattr(Teacher, "image_features", None)
    monkeypatch.setattr(Student, "frozen_image_features", None)
    warm = run("KDPL_CoOp", tmp_path / "warm", *kept)
    assert losses(warm) == losses(cold)
    assert_same(parameters(warm), parameters(cold))
    count = warm.view_features[0].known.numel()
    assert f"Features of {count} of {count} views found for emoji_teacher\n" in capsys.readouterr().out
    monkeypatch.undo()
    other = build("KDPL_CoCoOp", tmp_path / "other", *VIEWS, *kept)
    other.load_for_training()
    assert all(features.known.all() for features in other.view_features)


@pytest.mark.slow
def test_other_weights_transforms_and_changed_images_do_not_find_them(tmp_path, monkeypatch):
    kept = ("TRAINER.KDPL.CACHE_DIR", tmp_path / "cache")
    run("KDPL_CoOp", tmp_path / "cold", *kept)

    def known(*options):
        other = build("KDPL_CoOp", tmp_path / "other", *VIEWS, *kept, *options)
        other.load_for_training()
        return [int(f.known.sum()) for f in other.view_features]

    teacher, student = known()
    assert teacher == student > 0
    assert known("TRAINER.KDPL.TEACHER", "emoji_student") == [student, student], "the weights count, not the role"
    assert known("INPUT.RRCROP_SCALE", (0.3, 1.0)) == [0, 0]
    assert known("TRAINER.KDPL.VIEW_SEED", 1) == [0, 0]
    for library in (PIL, torchvision):
        with monkeypatch.context() as other:
            other.setattr(library, "__version__", "another")
            assert known() == [0, 0]
    assert known() == [teacher, student]
    assert ImageFile("a", "2").key(0) != ImageFile("a", "3").key(0) != ImageFile("a", "3").key(1)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 20), st.integers(1, 20))
def test_bytes_normalised_later_are_the_same_floats(seed, height, width):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    floats = T.Compose([T.RandomHorizontalFlip(1.0), T.ToTensor(), T.Normalize(mean, std)])
    image = Image.fromarray(pixels)
    later = bytes_transform(floats, mean, std)(image)
    assert later.dtype == torch.uint8
    assert torch.equal(Normalize(mean, std)(later[None])[0], floats(image))
