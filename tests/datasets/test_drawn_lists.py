"""A second start on ImageNet lists no class folder, and any change in the folders is seen."""

import os
import shutil

import pytest
from dassl.data.datasets import build_dataset
from support.miniatures import BUILDERS, config, load

from kdpl.datasets.coop.folder import DataFolder


@pytest.fixture
def imagenet(tmp_path):
    BUILDERS["ImageNet"](tmp_path)
    return tmp_path


def triples(part):
    return [(d.impath, d.label, d.classname) for d in part or ()]


def lists(root, **options):
    dataset = load(root, "ImageNet", **{"NUM_SHOTS": 1, **options})
    return [triples(part) for part in (dataset.train_x, dataset.val, dataset.test)]


def blind_lists(root, subsample):
    """The lists and class names of a run that draws images whatever their labels."""
    cfg = config(root, "ImageNet", NUM_SHOTS=1, SUBSAMPLE_CLASSES=subsample)
    cfg.TRAINER.NAME, cfg.TRAINER.KDPL.SHOTS = "KDPL_CoOp", "random"
    dataset = build_dataset(cfg)
    return [triples(part) for part in (dataset.train_x, dataset.val, dataset.test)], dataset.lab2cname


def forbid_listing(monkeypatch):
    def refuse(self, name):
        raise AssertionError(f"{name} was listed")

    monkeypatch.setattr(DataFolder, "image_names", refuse)


def test_the_second_start_reads_the_lists_and_gives_the_same(imagenet, monkeypatch, capsys):
    first = lists(imagenet)
    forbid_listing(monkeypatch)
    assert lists(imagenet) == first
    assert "Reading lists from" in capsys.readouterr().out


def test_a_file_more_or_less_is_seen(imagenet):
    first = lists(imagenet)
    folder = next((imagenet / "imagenet/images/val").iterdir())
    more = shutil.copy(next(folder.iterdir()), folder / "one_more.jpg")
    os.utime(folder, ns=(1, 1))  # whatever the clock's resolution
    second = lists(imagenet)
    assert str(more) in {path for path, *_ in second[2]} and len(second[2]) == len(first[2]) + 1
    os.unlink(more)
    os.utime(folder, ns=(2, 2))
    assert lists(imagenet) == first
    assert len(list((imagenet / "imagenet/split_fewshot").glob("lists_1-seed_*"))) == 1, "old lists are removed"


def test_a_damaged_file_of_lists_is_written_anew(imagenet):
    first = lists(imagenet)
    (path,) = (imagenet / "imagenet/split_fewshot").glob("lists_*")
    for content in ("", "{}", '{"train": [["x"]], "val": [], "test": []}'):
        path.write_text(content)
        assert lists(imagenet) == first
        assert path.read_text() != content
