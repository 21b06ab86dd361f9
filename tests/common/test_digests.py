"""Digests of files: remembered, and never those of other bytes than the ones that something is computed from."""

import os
from pathlib import Path

import pytest
import torch
from support import config, image_file
from torch.utils.data import DataLoader

from kdpl.common.rows import digests, key_of
from kdpl.distill.views import contents_of, image_files
from kdpl.training.pixels import ReadableImages


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))


def rewritten(path):
    """Change some pixels of a file in place; size and time of modification stay."""
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(os.urandom(8))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_digests_are_remembered_and_follow_the_content(tmp_path, monkeypatch):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    paths = [image_file(tmp_path / f"{i}.png", 8, i) for i in range(3)]
    read = []

    def digest(path):
        read.append(path)
        return digests.file_digest(path)

    monkeypatch.setattr(digests, "SETTLED_S", 0)
    first = digests.file_digests(paths, digest)
    assert first == [digests.file_digest(p) for p in paths] and len(read) == 3
    monkeypatch.setattr(digests, "SAMPLE", 1)
    assert digests.file_digests(paths, digest) == first and len(read) == 4, "a sample is read again"
    image_file(paths[0], 8, 9)
    assert digests.file_digests(paths, digest)[1:] == first[1:] != digests.file_digests(paths, digest)
    assert digests.file_digests(paths, digest)[0] == digests.file_digest(paths[0]) != first[0]


def test_an_image_that_is_rewritten_in_place_is_noticed_whatever_its_time(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_S", 0)
    monkeypatch.setattr(digests, "SAMPLE", 0)
    paths = [image_file(tmp_path / f"{i}.bmp", 8, i) for i in range(3)]
    first = digests.file_digests(paths)
    rewritten(paths[1])
    second = digests.file_digests(paths)
    assert second[1] == digests.file_digest(paths[1]) != first[1] and second[::2] == first[::2]


def test_what_was_found_changed_once_stays_changed(tmp_path, monkeypatch, capsys):
    """On a file system whose times tell nothing."""
    monkeypatch.setattr(digests, "_identity", lambda path: (key_of(os.path.basename(path)), 0.0))
    paths = [image_file(tmp_path / f"{i}.bmp", 8, i) for i in range(3)]
    first = digests.file_digests(paths)
    rewritten(paths[1])
    second = digests.file_digests(paths)
    assert f"'{paths[1]}' has changed although its size and times have not: all 3 files are read" in capsys.readouterr().out
    monkeypatch.setattr(digests, "SAMPLE", 0)
    assert digests.file_digests(paths) == second != first


def test_a_file_that_is_being_written_is_read_again_and_one_that_never_rests_is_refused(tmp_path):
    path = image_file(tmp_path / "0.bmp", 8)

    def digest_of(path, writes):
        found = digests.file_digest(path)
        if writes:
            writes.pop()
            rewritten(path)
        return found

    assert digests.file_digests([path], lambda p, left=[1, 2]: digest_of(p, left)) == [digests.file_digest(path)]
    with pytest.raises(digests.ChangedFileError, match=r"0.bmp' changes while it is read"):
        digests.file_digests([path], lambda p, left=[*range(99)]: digest_of(p, left))


def test_digests_of_files_that_changed_a_moment_ago_are_not_remembered(tmp_path):
    """Within a tick of a file system's clock they could change again and look the same."""
    digests.file_digests([image_file(tmp_path / "0.bmp", 8)])
    assert not list((tmp_path / "cache").rglob("*.rows"))


class Pictures:
    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        from kdpl.training.pixels import read_image

        return {"impath": self.items[index].impath, "img": read_image(self.items[index].impath).size}


class Item:
    def __init__(self, impath):
        self.impath = str(impath)


@pytest.mark.parametrize("workers", [0, 1])
def test_no_image_is_used_that_is_not_what_its_digest_says(workers, tmp_path):
    items = [Item(image_file(tmp_path / f"{i}.bmp", 8, i)) for i in range(3)]
    contents = contents_of(items, image_files([item.impath for item in items], tmp_path))
    touched, other = items[0].impath, items[2].impath
    data = Path(touched).read_bytes()
    os.unlink(touched)
    Path(touched).write_bytes(data)
    rewritten(other)
    loader = iter(DataLoader(ReadableImages(Pictures(items), contents), batch_size=None, num_workers=workers))
    assert next(loader)["impath"] == touched, "the same bytes, written again"
    assert next(loader)["impath"] == items[1].impath
    with pytest.raises(digests.ChangedFileError, match=r"2.bmp' has changed since the start of the run"):
        next(loader)


def folder_run(root, output, cache, *options):
    """Return a KDPL trainer with one view of each photo below a folder, loaded for training."""
    from dassl.engine import build_trainer

    (output.parent / "names.txt").write_text("cat\ndog\n")
    settings = ("DATASET.CLASSNAMES", output.parent / "names.txt", "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 2)
    views = ("TRAINER.KDPL.VIEWS", 1, "TRAINER.KDPL.CACHE_DIR", cache, "DATALOADER.NUM_WORKERS", 0, "TEST.NO_TEST", True)
    return build_trainer(config("KDPL_CoOp", "image_folder", output, "--root", root, "--seed", 1, *settings, *views, *options))


@pytest.mark.slow
def test_no_feature_is_stored_under_the_digest_of_other_bytes(tmp_path):
    paths = [image_file(tmp_path / "photos" / f"{i}.bmp", 32, i) for i in range(4)]
    run = folder_run(tmp_path / "photos", tmp_path / "a", tmp_path / "features")
    run.load_for_training()
    originals = [path.read_bytes() for path in paths]
    for path in paths:
        rewritten(path)
    with pytest.raises(digests.ChangedFileError):
        run.train()
    for path, data in zip(paths, originals, strict=True):
        path.write_bytes(data)
    again = folder_run(tmp_path / "photos", tmp_path / "b", tmp_path / "features")
    again.load_for_training()
    assert not again.view_features[0].table.known.any()


@pytest.mark.slow
def test_the_feature_of_an_image_in_place_of_an_unreadable_one_is_not_stored(tmp_path):
    paths = [image_file(tmp_path / "photos" / f"{i}.png", 32, i) for i in range(4)]
    run = folder_run(tmp_path / "photos", tmp_path / "a", tmp_path / "features")
    paths[1].write_bytes(paths[1].read_bytes()[:1500])  # its header can be read
    run.train()
    table = run.view_features[0].table
    assert table.known.all(), "in memory"
    stored = {key for _, found in table.store.find() for key, _ in found}
    keys = [image.key(0) for image in run.training_images]
    assert keys[1] not in stored and {keys[i] for i in (0, 2, 3)} & stored
    assert torch.isfinite(table.get(torch.arange(4), torch.zeros(4, dtype=torch.long))).all()
