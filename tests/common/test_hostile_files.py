"""Files from elsewhere run no code, take no more memory than they are long, and are refused by name."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import random_clip
from support.files import Evil, learned
from support.trainings import EVERY_STEP, SMALL, Killed, build, die_at

from kdpl.clip.loading import describe, load_clip
from kdpl.clip.weights import WeightsError
from kdpl.common.files import NoRoomError
from kdpl.common.tensor_files import TensorFileError, load_torch, load_torchscript
from kdpl.datasets import prepare as archives
from kdpl.training.checkpoint import CheckpointError, load_checkpoint, load_learned

TERABYTES = 2**42


@pytest.fixture(scope="module")
def clip_state():
    return {k: v.clone() for k, v in random_clip(5, 48, 64, 1, 64, 16, 77, 49408, 64, 1, 1).state_dict().items()}


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


def test_a_torchscript_archive_whose_objects_would_run_code_is_refused(script, tmp_path):
    evil = pickle.dumps(Evil(str(tmp_path / "was here")), protocol=2)
    path = rezipped(script[0], tmp_path / "evil.pt", lambda name, data: evil if name.endswith("/data.pkl") else data)
    with pytest.raises(WeightsError, match="mkdir, which could run code"):
        load_clip(f"openai:{path}")
    assert not (tmp_path / "was here").exists()


def inflated(path, target):
    """Have the directory of a zip archive claim terabytes for a tensor."""
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.start_dir
    at = data.index(b"data/0", start) - len(path.name.partition(".")[0]) - 1  # the member's name, behind 46 bytes of header
    at = data.rindex(b"PK\x01\x02", start, at + 46)
    struct.pack_into("<II", data, at + 20, 2**32 - 2, 2**32 - 2)  # compressed and whole size
    target.write_bytes(data)
    return target


def test_sizes_that_a_file_does_not_have_are_not_believed(tmp_path):
    good = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {"ctx": torch.zeros(4, 8)}, "epoch": 1}, good)
    with pytest.raises(CheckpointError, match=r"claim more than the file's .* bytes"):
        load_checkpoint(inflated(good, tmp_path / "inflated"))
    with pytest.raises(CheckpointError, match="is compressed, which PyTorch never does"):
        load_checkpoint(rezipped(good, tmp_path / "bomb", compression=zipfile.ZIP_DEFLATED))
    torch.save({"state_dict": {"ctx": torch.zeros(1).expand(TERABYTES)}}, tmp_path / "expanded")
    with pytest.raises(CheckpointError, match=r"'ctx' \(4398046511104,\) has more elements than the file stores"):
        load_checkpoint(tmp_path / "expanded")
    buffer = io.BytesIO()
    torch.save({"state_dict": {"ctx": torch.zeros(4)}}, buffer, _use_new_zipfile_serialization=False)
    old = buffer.getvalue()
    at = old.index(b"K\x04", old.index(b"cpu"))  # how many numbers the tensor's storage has, in the pickle
    (tmp_path / "old").write_bytes(old[:at] + b"J" + (2**31 - 1).to_bytes(4, "little") + old[at + 2 :])
    with pytest.raises(CheckpointError, match="storage has wrong byte size"):
        load_checkpoint(tmp_path / "old")
    header = json.dumps({"ctx": {"dtype": "F32", "shape": [TERABYTES], "data_offsets": [0, 4 * TERABYTES]}}).encode()
    for name, length in (("long.safetensors", len(header)), ("longer.safetensors", TERABYTES)):
        (tmp_path / name).write_bytes(struct.pack("<Q", length) + header + bytes(64))
        for function in (describe, load_clip):
            with pytest.raises(WeightsError, match=name):
                function(f"openai:{tmp_path}/{name}")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(4, 8).to_sparse(), "is not a plain dense tensor"),
        (torch.zeros(4, 8, device="meta"), "is not a plain dense tensor"),
        (torch.zeros(4, 8, dtype=torch.long), "in torch.int64"),
        (torch.zeros(4, 8, dtype=torch.complex64), "in torch.complex64"),
    ],
)
def test_tensors_of_odd_kinds_are_refused_as_prompts(tensor, message, tmp_path):
    torch.save({"state_dict": {"ctx": tensor}}, tmp_path / "c")
    with pytest.raises(CheckpointError, match=message):
        load_learned(learned(), load_checkpoint(tmp_path / "c")["state_dict"], tmp_path / "c")


@pytest.mark.parametrize(("key", "value"), [("epoch", "3"), ("epoch", None), ("kdpl", [1])])
def test_a_checkpoint_whose_facts_are_of_another_kind_is_refused(key, value, tmp_path):
    torch.save({"state_dict": {}, key: value}, tmp_path / "c")
    with pytest.raises(CheckpointError, match=f"'{key}' is no "):
        load_checkpoint(tmp_path / "c")


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


def without(key):
    return lambda state: {k: v for k, v in state.items() if k != key}


def with_value(key, value):
    return lambda state: {**state, key: value(state)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            with_value("ln_final.bias", lambda s: torch.full((64,), torch.nan)),
            "holds NaN or infinite weights in ln_final.bias",
        ),
        (without("ln_final.bias"), "Missing key"),
        (with_value("foreign", lambda s: torch.zeros(1)), "Unexpected key"),
        (with_value("visual.proj", lambda s: torch.zeros(64, 47)), "size mismatch for visual.proj"),
        (with_value("text_projection", lambda s: torch.zeros(2**20, 48)), "size mismatch"),
        (with_value("positional_embedding", lambda s: torch.zeros(2**17, 64)), "131072 positions of texts"),
        (with_value("token_embedding.used", lambda s: torch.tensor([2**40])), "is not a checkpoint of an OpenAI CLIP"),
        (with_value("visual.positional_embedding", lambda s: torch.zeros(())), "is not a checkpoint of an OpenAI CLIP"),
    ],
)
def test_weights_of_a_clip_that_do_not_fit_are_refused_by_name(change, message, clip_state, tmp_path):
    save_file({k: v.contiguous() for k, v in change(clip_state).items()}, tmp_path / "clip.safetensors")
    with pytest.raises(WeightsError, match=rf"clip.safetensors' (?s:.)*{message}"):
        load_clip(f"openai:{tmp_path}/clip.safetensors")
    assert load_file(tmp_path / "clip.safetensors")


@pytest.mark.slow
def test_a_state_to_go_on_from_that_lacks_a_part_is_refused_by_name(tmp_path):
    run = build("KDPL_CoOp", tmp_path, *SMALL, *EVERY_STEP)
    die_at(run, 2)
    with pytest.raises(Killed):
        run.train()
    (path,) = tmp_path.rglob("resume*")
    ours = load_checkpoint(path)["kdpl"]
    damages = [{"kdpl": {k: v for k, v in ours.items() if k != lost}} for lost in ours if lost not in ("history", "manifest")]
    damages += [{"kdpl": {**ours, "history": {}}}, {"optimizer": {"param_groups": []}}, {"scheduler": None}]
    for damage in damages:
        torch.save({**load_checkpoint(path), **damage}, path.with_name("damaged"))
        path.with_name("checkpoint").write_text("damaged")
        os.replace(path, path.with_name("good"))
        with pytest.raises(CheckpointError, match=r"Cannot resume from .*damaged' .*Start with the settings of that run"):
            run.resume_model_if_exist(str(tmp_path))
        os.replace(path.with_name("good"), path)
    path.with_name("checkpoint").unlink()
    assert run.resume_model_if_exist(str(tmp_path)) == 0 and run.first_batch == 2


def test_an_archive_larger_than_the_room_on_the_disk_is_not_begun(tmp_path, monkeypatch):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as bundle:
        bundle.writestr("a/b.bin", os.urandom(5000))
    (tmp_path / "archive.zip").write_bytes(content.getvalue())
    (tmp_path / "out").mkdir()
    usage = archives.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(archives.shutil, "disk_usage", lambda folder: usage._replace(free=4000))
    with pytest.raises(NoRoomError, match=r"free in .*: make room"):
        archives.unpack(tmp_path / "archive.zip", tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_link_to_itself_leaves_its_file_alone(tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "a.tar", "w") as bundle:
        info = tarfile.TarInfo("a")
        info.size = 3
        bundle.addfile(info, io.BytesIO(b"abc"))
        link = tarfile.TarInfo("a")
        link.type, link.linkname = tarfile.LNKTYPE, "a"
        bundle.addfile(link)
    (tmp_path / "out").mkdir()
    archives.unpack(tmp_path / "a.tar", tmp_path / "out")
    assert (tmp_path / "out/a").read_bytes() == b"abc"
