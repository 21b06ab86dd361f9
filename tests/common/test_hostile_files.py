"""Files from elsewhere run no code, take no more memory than they are long, and are refused by name."""

import os
import warnings
import zipfile

import pytest
import torch
from support import random_clip
from support.files import Evil

from kdpl.clip.loading import load_clip
from kdpl.common.safe_text import UnsafeTextError, read_text
from kdpl.common.tensor_files import TensorFileError, load_torch, load_torchscript
from kdpl.config.manifest import read_manifest
from kdpl.training.checkpoint import CheckpointError, load_checkpoint
from kdpl.training.pixels import read_image
from kdpl.training.results import ResultsError, read_results

TERABYTES = 2**42


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    """A TorchScript archive of a CLIP, and what PyTorch itself reads from it."""
    path, model = tmp_path_factory.mktemp("script") / "clip.pt", random_clip(5, 48, 64, 1, 64, 16, 77, 49408, 64, 1, 1)
    example = (torch.randn(1, 3, 64, 64), torch.zeros(1, 77, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(model, example, check_trace=False).save(path)
        return path, torch.jit.load(path).state_dict()


def rezipped(source, target, change=lambda name, data: data, compression=zipfile.ZIP_STORED):
    """Copy a zip archive with its members changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return target


def test_of_a_torchscript_archive_the_tensors_are_read_and_nothing_is_run(script, tmp_path, monkeypatch):
    path, expected = script

    def spoil(name, data):
        return b"def forward(self): this is no code" if "/code/" in name and name.endswith(".py") else data

    spoiled = rezipped(path, tmp_path / "clip.pt", spoil)
    with pytest.raises(RuntimeError):
        torch.jit.load(spoiled)
    before = spoiled.read_bytes()
    tensors = load_torchscript(spoiled)
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[k], v) for k, v in expected.items())
    assert spoiled.read_bytes() == before
    monkeypatch.setattr(torch.jit, "load", None)
    assert load_clip(f"openai:{path}").embed_dim == 48


def test_the_format_before_zip_archives_is_read_without_code_too(tmp_path):
    torch.save({"a": torch.arange(3)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(load_torch(tmp_path / "old.pt")["a"], torch.arange(3))
    torch.save({"a": Evil(str(tmp_path / "was here"))}, tmp_path / "evil.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "was here").exists()
    with pytest.raises(TensorFileError, match="mkdir"):
        torch.save({"a": Evil(str(tmp_path / "was here"))}, tmp_path / "new.pt")
        load_torch(tmp_path / "new.pt")


def test_sizes_that_a_file_does_not_have_are_not_believed(tmp_path):
    good = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.zeros(400, 800)}, "epoch": 1}, good)
    with pytest.raises(CheckpointError, match=r"claim more than the file's .* bytes"):
        load_checkpoint(rezipped(good, tmp_path / "bomb", compression=zipfile.ZIP_DEFLATED))
    torch.save({"state_dict": {"ctx": torch.zeros(1).expand(TERABYTES)}}, tmp_path / "expanded")
    with pytest.raises(CheckpointError, match=r"'ctx' \(4398046511104,\) has more elements than the file stores"):
        load_checkpoint(tmp_path / "expanded")


def test_a_fifo_or_a_text_that_is_too_large_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    with pytest.raises(UnsafeTextError, match="is not a regular file"):
        read_text(tmp_path / "x.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        read_image(tmp_path / "x.jpg")
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnsafeTextError, match="has more than 1,000 bytes"):
        read_text(tmp_path / "x.json", 1000)


@pytest.mark.parametrize("text", ["[" * 200_000, '"' + "x" * 100, '{"format": 1}', "[]"])
def test_json_of_another_kind_is_damaged_results_and_no_manifest(text, tmp_path):
    for name in ("results.json", "manifest.json"):
        (tmp_path / name).write_text(text)
    with pytest.raises(ResultsError, match=r"results.json'"):
        read_results(tmp_path)
    assert read_manifest(tmp_path) is None
