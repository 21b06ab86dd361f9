"""Features on disk: found again, shared by processes, never of other bytes; checkpoints from elsewhere run no code."""

import os
import shutil
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from support import config, image_file, processes, random_clip
from support.files import Evil

from kdpl.clip.loading import load_clip
from kdpl.common import tensor_files
from kdpl.common.files import file_digest, key_of
from kdpl.common.safe_text import UnsafeTextError, read_text
from kdpl.common.tensor_files import FeatureFile, TensorFileError, file_digests, load_torch
from kdpl.config.manifest import read_manifest
from kdpl.training.batches import read_image
from kdpl.training.checkpoint import CheckpointError, load_checkpoint
from kdpl.training.results import ResultsError, read_results

KEYS = [key_of(name) for name in "abc"]
VALUES = torch.arange(12.0).view(3, 4)
TERABYTES = 2**42


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))


def saved(folder, values=VALUES, **meaning):
    file = FeatureFile(folder, meaning, values.shape[1])
    file.add(KEYS, values)
    file.save()
    return file


def test_what_was_saved_is_found_by_what_it_depends_on(tmp_path):
    file = saved(tmp_path, weights=1)
    assert torch.equal(file.get(KEYS[::-1]), VALUES.flip(0)) and file.hits == 0
    again = FeatureFile(tmp_path, {"weights": 1}, 4)
    assert torch.equal(again.get([KEYS[2], KEYS[0]]), VALUES[[2, 0]]) and again.hits == 2
    assert KEYS[0] not in FeatureFile(tmp_path, {"weights": 2}, 4)


def test_a_feature_that_is_not_finite_is_not_known(tmp_path):
    file = saved(tmp_path, VALUES.index_fill(0, torch.tensor(1), torch.nan))
    assert [key in again for again in (file, FeatureFile(tmp_path, {}, 4)) for key in KEYS] == [True, False, True] * 2


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path):
    code = (
        "import sys, torch; from kdpl.common.tensor_files import FeatureFile; from kdpl.common.files import key_of\n"
        "file = FeatureFile(sys.argv[1], {}, 2)\n"
        "for i in range(20): file.add([key_of(sys.argv[2], i)], torch.full((1, 2), float(i))); file.save()\n"
    )
    running = [processes.Popen([sys.executable, "-c", code, str(tmp_path), name]) for name in "abc"]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    file = FeatureFile(tmp_path, {}, 2)
    assert file.get([key_of(name, i) for name in "abc" for i in range(20)])[:, 0].tolist() == [*range(20)] * 3


@pytest.mark.parametrize("damage", ["cut off", "of other tensors", "a FIFO"])
def test_a_damaged_file_is_said_and_written_again(damage, tmp_path, capsys):
    path = saved(tmp_path).path
    if damage == "a FIFO":
        path.unlink()
        os.mkfifo(path)
    else:
        other = saved(tmp_path / "other", VALUES[:, :3]).path
        path.write_bytes(other.read_bytes() if damage == "of other tensors" else path.read_bytes()[:-7])
    assert KEYS[0] not in FeatureFile(tmp_path, {}, 4)
    assert ("is damaged, and what it had is computed again" in capsys.readouterr().out) == (damage != "a FIFO")
    saved(tmp_path)
    assert torch.equal(FeatureFile(tmp_path, {}, 4).get(KEYS), VALUES)


def test_a_folder_that_cannot_be_written_is_said_once_and_one_that_is_removed_is_made_again(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tensor_files, "SAVE_EVERY", 0.0)
    (tmp_path / "file").write_text("")
    file = FeatureFile(tmp_path / "file" / "cache", {}, 4)
    for row in range(3):
        file.add(KEYS[row : row + 1], VALUES[row : row + 1])
    assert torch.equal(file.get(KEYS), VALUES) and not file.writable
    assert capsys.readouterr().out.count("Features are not cached from now on") == 1
    file = saved(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    assert torch.equal(file.get(KEYS[:1]), VALUES[:1])
    file.add([key_of("d")], VALUES[:1])
    file.save()
    assert key_of("d") in FeatureFile(tmp_path / "cache", {}, 4)


# --------------------------------------------------------------------------------------------------------------- digests


def rewritten(path):
    """Change some pixels of a file in place; size and time of modification stay."""
    times = os.stat(path)
    with open(path, "r+b") as file:
        file.seek(100)
        file.write(os.urandom(8))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_digests_are_remembered_and_follow_the_content_whatever_the_time_of_modification(tmp_path, monkeypatch):
    paths = [image_file(tmp_path / f"{i}.bmp", 8, i) for i in range(3)]
    first = file_digests(paths)
    assert first == [file_digest(path) for path in paths]
    rewritten(paths[1])
    assert file_digests(paths) == [first[0], file_digest(paths[1]), first[2]] != first
    monkeypatch.setattr(tensor_files, "file_digest", None)
    assert file_digests([paths[2], paths[0], paths[2]]) == [first[2], first[0], first[2]], "nothing is read"


@pytest.mark.slow
def test_no_feature_is_stored_under_the_digest_of_other_bytes(tmp_path):
    from dassl.engine import build_trainer

    paths = [Path(image_file(tmp_path / "photos" / f"{i}.bmp", 32, i)) for i in range(4)]
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    options = ("DATASET.CLASSNAMES", tmp_path / "names.txt", "OPTIM.MAX_EPOCH", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 2)
    views = ("TRAINER.KDPL.VIEWS", 1, "TRAINER.KDPL.CACHE_DIR", tmp_path / "features", "DATALOADER.NUM_WORKERS", 0)
    root = ("--root", tmp_path / "photos", "--seed", 1)
    run = build_trainer(config("KDPL_CoOp", "image_folder", tmp_path / "a", *root, *options, *views, "TEST.NO_TEST", True))
    run.load_for_training()
    paths[1].write_bytes(paths[1].read_bytes()[:1500])  # its header can be read; another image takes its place
    run.train()
    assert run.view_features[0].known.all(), "in memory"
    with safe_open(run.view_features[0].store.path, "pt") as file:
        keys = {bytes(row) for row in file.get_tensor("keys").tolist()}
    there = [image.key(0) in keys for image in run.training_images]
    assert not there[1] and any(there)


# -------------------------------------------------------------------------------------------------- files from elsewhere


def test_of_a_torchscript_archive_the_tensors_are_read(tmp_path):
    path, model = tmp_path / "clip.pt", random_clip(5, 48, 64, 1, 64, 16, 77, 49408, 64, 1, 1)
    example = (torch.randn(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, example, check_trace=False).save(path)
    tensors, expected = load_torch(path), model.state_dict()
    assert expected.keys() <= tensors.keys() and all(torch.equal(tensors[k], v) for k, v in expected.items())
    assert load_clip(f"openai:{path}").embed_dim == 48


def test_no_checkpoint_runs_code_in_either_format_of_pytorch(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_torch(tmp_path / "old.pt")["a"], torch.arange(3))
    torch.save({"a": Evil(str(tmp_path / "was here"))}, tmp_path / "evil.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    torch.save({"a": Evil(str(tmp_path / "was here"))}, tmp_path / "new.pt")
    with pytest.raises(TensorFileError, match="mkdir"):
        load_torch(tmp_path / "new.pt")
    assert not (tmp_path / "was here").exists()


def test_sizes_that_a_file_does_not_have_are_not_believed(tmp_path):
    good = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.zeros(400, 800)}, "epoch": 1}, good)
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    with pytest.raises(CheckpointError, match=r"claim more than the file's .* bytes"):
        load_checkpoint(tmp_path / "bomb")
    torch.save({"state_dict": {"ctx": torch.zeros(1).expand(TERABYTES)}}, tmp_path / "expanded")
    with pytest.raises(CheckpointError, match=r"'ctx' \(4398046511104,\) has more elements than the file stores"):
        load_checkpoint(tmp_path / "expanded")


def test_a_fifo_or_a_text_that_is_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    for read in (read_text, read_image):
        with pytest.raises((UnsafeTextError, OSError), match="not a regular file"):
            read(tmp_path / "x.jpg")
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnsafeTextError, match="has more than 1,000 bytes"):
        read_text(tmp_path / "x.json", 1000)


@pytest.mark.parametrize("text", ["[" * 200_000, '{"format": 1}', "[]"])
def test_json_of_another_kind_is_damaged_results_and_no_manifest(text, tmp_path):
    for name in ("results.json", "manifest.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ResultsError, match=r"results.json'"):
        read_results(tmp_path)
    assert read_manifest(tmp_path) is None
