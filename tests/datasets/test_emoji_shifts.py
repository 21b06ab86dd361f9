"""The embedded benchmark's shifts: unseen drawings at test time, target data sets, and domains for testing only."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import ROOT, mostly_slow

import kdpl

# isort: split
from dassl.config import get_cfg_default
from dassl.data.datasets import Datum, build_dataset

from kdpl.datasets.emoji import art, plans, scenes

UNSEEN = ("all", *plans.TARGETS)


def config(root: Path, name: str, **keys) -> object:
    cfg = get_cfg_default()
    kdpl.extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/datasets" / f"emoji_{name}.yaml"))
    cfg.DATASET.ROOT, cfg.SEED = str(root), 1
    for key, value in keys.items():
        cfg.DATASET[key] = value
    return cfg


@pytest.fixture
def few(monkeypatch):
    """Leave only some classes' scenes of each data set, with their checksum."""
    listed = plans.scenes_of

    def some(name: str) -> list[plans.Scene]:
        return [scene for scene in listed(name) if scene.label % 30 == 0]

    monkeypatch.setattr(scenes, "scenes_of", some)
    for name in ("r", "sky"):
        monkeypatch.setitem(plans.SHA256, name, hashlib.sha256(plans.draw(some(name))).hexdigest())


def files(data: Iterable[Datum]) -> list[tuple[str, int]]:
    return [(datum.impath, datum.label) for datum in data]


# ---------------------------------------------------------------- the pixels


@pytest.mark.parametrize("name", mostly_slow(plans.PLANS, sample=("sky", "r", "sketch", "photos_sky")))
def test_every_pixel_is_the_committed_one(name):
    assert hashlib.sha256(plans.draw(plans.scenes_of(name))).hexdigest() == plans.SHA256[name]


# ---------------------------------------------------------------- what belongs where


@pytest.mark.slow
def test_no_training_or_validation_image_shows_a_test_drawing():
    for name in UNSEEN:
        listed = plans.scenes_of(name)
        learned = {(scene.style, scene.thing) for scene in listed if scene.split != "test"}
        left_out = plans.PLANS[name].tested
        assert learned and not learned & {(s.style, s.thing) for s in listed if s.split == "test" and s.style_name in left_out}
        seen = {(s.style, s.thing, s.rendering) for s in listed if s.split != "test"}
        new = {(s.style, s.thing, s.rendering) for s in listed if s.split == "test" and s.style_name not in left_out}
        assert {(style, thing) for style, thing, _ in new} == learned and not new & seen, "new scenes of the same drawings"
    plan = plans.PLANS["all"]
    styles = {0: set(plan.styles_of("train", "val")), 1: set(plan.tested)}
    seen, tested = ({image.tobytes() for style in styles[split] for image in art.drawings(style)} for split in (0, 1))
    assert len(seen) > 1000 and not seen & tested, "the same drawing under two names"
    domains = {style for name in plans.DOMAINS for style in plans.PLANS[name].styles}
    assert not domains & styles[0]


def test_the_ten_targets_divide_the_things():
    names = [name for target in plans.TARGETS for name in scenes.class_names(target)]
    assert sorted(names) == scenes.class_names("all") and len(names) == len(art.things()) == 567
    assert len(plans.TARGETS) == 10
    assert all(25 <= len(scenes.class_names(target)) <= 80 for target in plans.TARGETS)
    for name, about in plans.TARGETS.items():
        assert about.startswith(f"{len(scenes.class_names(name))} ")


def test_hard_scenes_are_in_no_other_split():
    hard = {(scene.style, scene.thing, scene.rendering) for scene in plans.scenes_of("a")}
    others = {(s.style, s.thing, s.rendering) for name in plans.PLANS if name != "a" for s in plans.scenes_of(name)}
    assert hard and not hard & others
    assert not {rendering for _, _, rendering in others} & set(plans.HARD_CANDIDATES), "nor could they be"
    chosen = plans.hard_scenes()
    assert list(chosen) == scenes.class_names("all")
    assert all(set(numbers) <= set(plans.HARD_CANDIDATES) for numbers in chosen.values())
    assert sum(map(len, chosen.values())) == len(hard) and max(map(len, chosen.values())) == 4


# ---------------------------------------------------------------- as data sets


@pytest.mark.slow
def test_a_domain_is_for_testing_only(few, tmp_path):
    data = build_dataset(config(tmp_path, "r", NUM_SHOTS=1, SOURCE_DOMAINS=("noto",)))
    assert files(data.train_x) == files(data.test) and not data.val
    assert data.classnames == scenes.class_names("all") and data.num_classes == 567
    assert Counter(datum.label for datum in data.test) == dict.fromkeys(range(0, 567, 30), 4)
    assert data.domains == ("glossy", "pixels", "stitches")
    for datum in data.test[:8]:
        assert Path(datum.impath).name.startswith(data.domains[datum.domain])
        scene = next(s for s in plans.scenes_of("r") if datum.impath.endswith(f"/{s.path}"))
        with Image.open(datum.impath) as image:
            assert (np.asarray(image) == plans.draw([scene])[0]).all()
    new = build_dataset(config(tmp_path, "r", SUBSAMPLE_CLASSES="new"))
    assert new.classnames == scenes.class_names("all")[284:] and new.num_classes == 283
    one = build_dataset(config(tmp_path, "r", TARGET_DOMAINS=("stitches",)))
    assert {datum.domain for datum in one.test} == {2}


def test_a_target_trains_and_validates_on_two_styles_and_tests_on_a_third(few, tmp_path):
    data = build_dataset(config(tmp_path, "sky", NUM_SHOTS=16))
    assert data.domains == ("noto", "fluent", "twemoji")
    splits = (data.train_x, data.val, data.test)
    assert [Counter(datum.domain for datum in split) for split in splits] == [{0: 16, 1: 16}, {0: 4, 1: 4}, {2: 16}]
    one = build_dataset(config(tmp_path, "sky", SOURCE_DOMAINS=("noto",)))
    assert {datum.domain for datum in one.train_x} == {datum.domain for datum in one.val} == {0}
    assert {datum.domain for datum in one.test} == {2}
    with pytest.raises(ValueError, match=r"SOURCE_DOMAINS 'twemoji'.*noto, fluent"):
        build_dataset(config(tmp_path, "sky", SOURCE_DOMAINS=("twemoji",)))
