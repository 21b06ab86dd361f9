"""Photos of one's own in the embedded benchmark: data that are apart."""

import hashlib
from pathlib import Path

from support import ROOT

import kdpl

# isort: split
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset

from kdpl.datasets.emoji import plans, scenes


def test_no_photo_is_in_two_splits_and_none_of_another_data_set_is_trained_on():
    trained: dict[tuple, set[str]] = {}
    for name in plans.PHOTOS:
        for scene in plans.scenes_of(name):
            trained.setdefault((scene.style, scene.thing, scene.rendering), set()).add(scene.split)
            assert scene.style_name == "twemoji"
    assert all(len(splits) == 1 for splits in trained.values()), "a scene of two splits"
    learned = {scene for scene, splits in trained.items() if splits != {"test"}}
    names = plans.PLANS.keys() - plans.PHOTOS.keys()
    others = {(s.style, s.thing, s.rendering) for name in names for s in plans.scenes_of(name)}
    assert len(learned) == 567 * 72 and not learned & others, "photos that are a test image elsewhere"


def test_a_class_has_64_photos_8_for_validation_and_8_of_the_same_source_for_testing():
    for name, target in plans.PHOTOS.items():
        assert scenes.class_names(name) == scenes.class_names(target)
        listed = [(s.label, s.split) for s in plans.scenes_of(name)]
        assert {split: listed.count((0, split)) for split in ("train", "val", "test")} == {"train": 64, "val": 8, "test": 8}
        assert len(listed) == 80 * len(scenes.class_names(name))


def test_photos_are_trained_on_and_tested_on_by_default(tmp_path, monkeypatch):
    few = [scene for scene in plans.scenes_of("photos_sky") if scene.label % 20 == 0]
    monkeypatch.setattr(scenes, "scenes_of", lambda name: few)
    monkeypatch.setitem(plans.SHA256, "photos_sky", hashlib.sha256(plans.draw(few)).hexdigest())
    cfg = get_cfg_default()
    kdpl.extend_cfg(cfg)
    cfg.merge_from_file(str(ROOT / "configs/datasets/emoji_photos_sky.yaml"))
    cfg.DATASET.ROOT, cfg.SEED, cfg.DATASET.NUM_SHOTS = str(tmp_path), 1, 4
    data = build_dataset(cfg)
    folder = tmp_path / "emoji_scenes/photos_sky"
    splits = [{Path(d.impath).relative_to(folder).as_posix() for d in split} for split in (data.train_x, data.val, data.test)]
    assert [len(split) for split in splits] == [2 * 4, 2 * 4, 2 * 8]
    assert [{path.split("/")[0] for path in split} for split in splits] == [{"train"}, {"val"}, {"test"}]
