"""Features on disk: found again, added to by several processes, and never those of another file's bytes."""

import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import config, image_file, processes

from kdpl.common import features
from kdpl.common.features import FeatureFile, file_digests
from kdpl.common.files import file_digest, key_of

KEYS = [key_of(name) for name in "abc"]
VALUES = torch.arange(12.0).view(3, 4)


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


def test_what_was_saved_is_found_by_what_it_depends_on(tmp_path):
    file = FeatureFile(tmp_path, {"weights": 1}, 4)
    file.add(KEYS, VALUES)
    assert torch.equal(file.get(KEYS[::-1]), VALUES.flip(0)) and file.hits == 0
    file.save()
    again = FeatureFile(tmp_path, {"weights": 1}, 4)
    assert torch.equal(again.get([KEYS[2], KEYS[0]]), VALUES[[2, 0]]) and again.hits == 2
    assert KEYS[0] not in FeatureFile(tmp_path, {"weights": 2}, 4)


def test_a_feature_that_is_not_finite_is_not_known(tmp_path):
    file = FeatureFile(tmp_path, {}, 4)
    file.add(KEYS, VALUES.index_fill(0, torch.tensor(1), torch.nan))
    file.save()
    assert [key in again for again in (file, FeatureFile(tmp_path, {}, 4)) for key in KEYS] == [True, False, True] * 2


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path):
    code = (
        "import sys, torch; from kdpl.common.features import FeatureFile; from kdpl.common.files import key_of\n"
        "file = FeatureFile(sys.argv[1], {}, 2)\n"
        "for i in range(20): file.add([key_of(sys.argv[2], i)], torch.full((1, 2), float(i))); file.save()\n"
    )
    running = [processes.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    file = FeatureFile(tmp_path, {}, 2)
    assert file.get([key_of(name, i) for name in "abc" for i in range(20)])[:, 0].tolist() == [*range(20)] * 3


@pytest.mark.parametrize("damage", ["cut off", "empty", "of other tensors", "a FIFO"])
def test_a_damaged_file_is_said_and_written_again(damage, tmp_path, capsys):
    file = FeatureFile(tmp_path, {}, 4)
    file.add(KEYS, VALUES)
    file.save()
    data = file.path.read_bytes()
    if damage == "a FIFO":
        file.path.unlink()
        os.mkfifo(file.path)
    elif damage == "of other tensors":
        other = FeatureFile(tmp_path / "other", {}, 3)
        other.add(KEYS, VALUES[:, :3])
        other.save()
        file.path.write_bytes(other.path.read_bytes())
    else:
        file.path.write_bytes(data[:-7] if damage == "cut off" else b"")
    again = FeatureFile(tmp_path, {}, 4)
    assert KEYS[0] not in again
    assert ("is damaged, and what it had is computed again" in capsys.readouterr().out) == (damage != "a FIFO")
    again.add(KEYS, VALUES)
    again.save()
    assert torch.equal(FeatureFile(tmp_path, {}, 4).get(KEYS), VALUES)


def test_a_folder_that_cannot_be_written_is_said_once_and_one_that_is_removed_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "SAVE_EVERY", 0.0)
    (tmp_path / "file").write_text("")
    file = FeatureFile(tmp_path / "file" / "cache", {}, 4)
    for row in range(3):
        file.add(KEYS[row : row + 1], VALUES[row : row + 1])
    assert torch.equal(file.get(KEYS), VALUES) and not file.writable
    assert capsys.readouterr().out.count("Features are not cached from now on") == 1
    file = FeatureFile(tmp_path / "cache", {}, 4)
    file.add(KEYS[:1], VALUES[:1])
    file.save()
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(file.get(KEYS[:1]), VALUES[:1])
    file.add(KEYS[1:], VALUES[1:])
    file.save()
    assert KEYS[2] in FeatureFile(tmp_path / "cache", {}, 4)


# --------------------------------------------------------------------------------------------------------------- digests


def test_digests_are_remembered_and_follow_the_content_whatever_the_time_of_modification(tmp_path, monkeypatch):
    monkeypatch.setattr(features, "SETTLED", 0)
    paths = [image_file(tmp_path / f"{i}.bmp", 8, i) for i in range(3)]
    first = file_digests(paths)
    assert first == [file_digest(path) for path in paths]
    rewritten(paths[1])
    assert file_digests(paths) == [first[0], file_digest(paths[1]), first[2]] != first
    monkeypatch.setattr(features, "file_digest", None)
    assert file_digests([paths[2], paths[0], paths[2]]) == [first[2], first[0], first[2]], "nothing is read"


def test_digests_of_files_that_changed_a_moment_ago_are_not_remembered(tmp_path):
    """Within a tick of a file system's clock they could change again and look the same."""
    file_digests([image_file(tmp_path / "0.bmp", 8)])
    assert not (tmp_path / "cache").exists()


def folder_run(root, output, cache, *options):
    """Return a KDPL trainer with one view of each photo below a folder, loaded for training."""
    from dassl.engine import build_trainer

    (output.parent / "names.txt").write_text("cat\ndog\n")
    settings = ("DATASET.CLASSNAMES", output.parent / "names.txt", "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 2)
    views = ("TRAINER.KDPL.VIEWS", 1, "TRAINER.KDPL.CACHE_DIR", cache, "DATALOADER.NUM_WORKERS", 0, "TEST.NO_TEST", True)
    return build_trainer(config("KDPL_CoOp", "image_folder", output, "--root", root, "--seed", 1, *settings, *views, *options))


@pytest.mark.slow
@pytest.mark.parametrize("change", ["rewritten", "unreadable"])
def test_no_feature_is_stored_under_the_digest_of_other_bytes(change, tmp_path):
    paths = [Path(image_file(tmp_path / "photos" / f"{i}.bmp", 32, i)) for i in range(4)]
    run = folder_run(tmp_path / "photos", tmp_path / "a", tmp_path / "features")
    run.load_for_training()
    if change == "rewritten":
        rewritten(paths[1])
    else:
        paths[1].write_bytes(paths[1].read_bytes()[:1500])  # its header can be read; another image takes its place
    run.train()
    assert run.view_features[0].table.known.all(), "in memory"
    with safe_open(run.view_features[0].table.store.path, "pt") as file:
        keys = {bytes(row) for row in file.get_tensor("keys").tolist()}
    there = [image.key(0) in keys for image in run.training_images]
    assert not there[1] and any(there)
