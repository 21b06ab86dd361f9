"""Contents for every loader, sound, damaged and hostile, and how each may end.

`tests/test_fuzz.py` tries some of them, `scripts/fuzz.sh` as many as it has time for.
"""

import contextlib
import dataclasses
import io
import json
import string
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save
from torch import nn

from kdpl import bundle
from kdpl.bundle import read_bundle
from kdpl.clip.loading import describe, load_clip
from kdpl.clip.weights import WeightsError
from kdpl.common.class_names import read_class_names
from kdpl.common.features import FeatureFile
from kdpl.common.files import key_of
from kdpl.common.images import BadImageError, open_image
from kdpl.config.checks import check_config
from kdpl.config.defaults import extend_cfg
from kdpl.config.keys import ConfigError
from kdpl.config.merging import merge_file, merge_options
from kdpl.datasets.coop.catalog import CATALOG
from kdpl.datasets.coop.folder import DamagedDataError, DataFolder, MissingDataError
from kdpl.datasets.coop.splits import load_split
from kdpl.datasets.prepare import ArchiveError, unpack
from kdpl.experiments.sweep.plan import read_sweep, runs_of
from kdpl.text.vocabulary import VocabularyError, load_vocabulary
from kdpl.training.checkpoint import CheckpointError, checkpoint_path, load_checkpoint, load_learned, random_state
from kdpl.training.results import ResultsError, read_results, write_results
from support import ROOT, random_clip
from support.files import HONEST, RUN, result


class Target(NamedTuple):
    """A loader, what it is given, and how it may end."""

    inputs: st.SearchStrategy
    check: Callable[[Any, Path], object]  # the second argument is an empty folder
    errors: type[Exception] | tuple[type[Exception], ...] = ()

    def run(self, value: Any, folder: Path) -> None:
        with contextlib.suppress(*(self.errors if isinstance(self.errors, tuple) else (self.errors,))):
            self.check(value, folder)


# ----------------------------------------------------------------------------------------------------------------- inputs


@st.composite
def damaged(draw, content: Callable[[], bytes], end: int = 2**62) -> bytes:
    """A sound file in which a few places before `end` are changed, cut out, doubled or filled with others."""
    data = bytearray(content())
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, min(len(data), end)))
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 60, 2**20]))
        piece = draw(
            st.one_of(st.binary(max_size=8), st.sampled_from([b"\0" * 4, b"\xff" * 4, b"\xff\xff\xff\x7f", b"9" * 20]))
        )
        what = draw(st.sampled_from(["replace", "replace", "cut", "insert", "double"]))
        if what == "replace":
            data[at : at + len(piece)] = piece
        elif what == "cut":
            del data[at : at + length]
        elif what == "insert":
            data[at:at] = piece
        else:
            data[at:at] = data[at : at + length]
    return bytes(data)


def as_bytes(content: Callable[[], bytes], end: int = 2**62) -> st.SearchStrategy[bytes]:
    return st.one_of(damaged(content, end), damaged(content, end), st.binary(max_size=64))


@st.composite
def damaged_members(draw, content: Callable[[], bytes], pattern: str) -> bytes:
    """A zip archive of PyTorch's in which a member is damaged and its checksum is right."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content())) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(name, draw(damaged(lambda name=name: old.read(name))) if name.endswith(pattern) else old.read(name))
    return target.getvalue()


json_values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["0", "../a", "a.jpg"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=6), inner, max_size=4)),
    max_leaves=8,
)


@st.composite
def changed_json(draw, content: Callable[[], Any]) -> bytes:
    """JSON in which values are replaced by any others."""
    value = json.loads(json.dumps(content()))
    for _ in range(draw(st.integers(1, 3))):
        here = value
        while isinstance(here, dict | list) and here:
            key = draw(st.sampled_from(sorted(here) if isinstance(here, dict) else range(len(here))))
            if not isinstance(here[key], dict | list) or not here[key] or draw(st.booleans()):
                here[key] = draw(json_values)
                break
            here = here[key]
    return json.dumps(value).encode()


names = st.one_of(
    st.text(string.ascii_letters + "./\\\0é\udc80 ", min_size=1, max_size=12),
    st.sampled_from(["../x", "/tmp/x", "a/../../x", "a/b", "a", "a/", ".", "", "C:/x", "x" * 300]),
)


@st.composite
def tar_archives(draw) -> bytes:
    """Well-formed tar archives of any members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=draw(st.sampled_from(["w", "w:gz"])), format=draw(st.integers(0, 2))) as bundle:
        for _ in range(draw(st.integers(0, 5))):
            info = tarfile.TarInfo(draw(names))
            info.type = draw(st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, *b"0123456LKxgSV"]))
            info.type = info.type if isinstance(info.type, bytes) else bytes([info.type])
            info.linkname = draw(names)
            data = draw(st.binary(max_size=20))
            info.size = draw(st.sampled_from([len(data), len(data), 0, 2**33]))
            with contextlib.suppress(ValueError, tarfile.TarError, UnicodeError):  # not every name can be written
                bundle.addfile(info, io.BytesIO(data) if len(data) == info.size else None)
    return buffer.getvalue()


@st.composite
def zip_archives(draw) -> bytes:
    """Well-formed zip archives of any members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as bundle:
        for _ in range(draw(st.integers(0, 5))):
            info = zipfile.ZipInfo(draw(names) or "x")
            info.external_attr = draw(st.integers(0, 2**32 - 1))
            with contextlib.suppress(UnicodeError):
                bundle.writestr(info, draw(st.binary(max_size=20)))
    return buffer.getvalue()


# ------------------------------------------------------------------------------------------------------------ sound files


def as_torch(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@cache
def checkpoint_bytes() -> bytes:
    optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    state = {"state_dict": {"ctx": torch.randn(4, 8)}, "epoch": 3, "optimizer": optimizer, "kdpl": {"random": random_state()}}
    return as_torch(state)


@cache
def clip_tensors() -> dict[str, torch.Tensor]:
    """A CLIP as the embedded ones are kept, with a few rows of its token embedding alone, so that it is small."""
    state = dict(random_clip(5, 48, 64, 1, 64, 32, 77, 49408, 64, 1, 1).state_dict())
    used = torch.arange(49000, 49408)
    state["token_embedding.weight"], state["token_embedding.used"] = state["token_embedding.weight"][used], used.int()
    return {k: v.contiguous().clone() for k, v in state.items()}


@cache
def script_bytes() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))), buffer)
    return buffer.getvalue()


@cache
def features_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        store = FeatureFile(folder, {}, 4)
        store.add([key_of("cat"), key_of("dog")], torch.ones(2, 4))
        store.save()
        return store.path.read_bytes()


def bundle_bytes(metadata: bytes) -> bytes:
    return save({"ctx": torch.zeros(4, 8)}, {bundle.KEY: metadata.decode("utf-8", "replace")})


def bundle_facts() -> dict[str, Any]:
    preprocessing = bundle.Preprocessing((64, 64), "bicubic", (0.0,) * 3, (1.0,) * 3)
    kept = bundle.Bundle(
        {}, "CoOp", "KDPL_CoOp", "emoji_student", "0", {"N_CTX": 4}, preprocessing, "EmojiMeals", "a photo of a {}.",
        ["cat", "dog"], "emoji_teacher", False, 2, [result()], "SEED: 1",
    )  # fmt: skip
    return {"format": bundle.FORMAT, **{k: v for k, v in dataclasses.asdict(kept).items() if k != "parameters"}}


@cache
def results_bytes() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        return write_results(folder, RUN, result()).read_bytes()


def image_bytes(format: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, format, **({"exif": b"Exif\0\0II*\0\x08\0\0\0\0\0"} if format == "JPEG" else {}))
    return buffer.getvalue()


def archive_bytes(kind: str) -> bytes:
    return HONEST[kind]


EUROSAT = CATALOG["EuroSAT"]
SPLIT = {part: [[f"A/{i}.jpg", i % 2, "abc"[i % 2]] for i in range(4)] for part in ("train", "val", "test")}


# ----------------------------------------------------------------------------------------------------------------- checks


def default_config():
    from dassl.config import get_cfg_default

    cfg = get_cfg_default()
    extend_cfg(cfg)
    return cfg


def check_yaml(content: bytes, folder: Path) -> None:
    (folder / "c.yaml").write_bytes(content)
    cfg = default_config()
    merge_file(cfg, folder / "c.yaml")
    check_config(cfg, "KDPL")


def check_options(options: list[str], folder: Path) -> None:
    cfg = default_config()
    merge_options(cfg, options)
    check_config(cfg, "KDPL")


def check_checkpoint(content: bytes, folder: Path) -> None:
    (folder / "p").mkdir()
    (folder / "p" / "model.pth.tar-1").write_bytes(content)
    module = nn.Module()
    module.ctx = nn.Parameter(torch.zeros(4, 8))
    load_learned(module, load_checkpoint(checkpoint_path(folder, "p", 1))["state_dict"], "it")
    assert torch.isfinite(module.ctx).all()


def check_pointer(content: bytes, folder: Path) -> None:
    (folder / "p").mkdir()
    (folder / "p" / "checkpoint").write_bytes(content)
    path = checkpoint_path(folder, "p", None)
    assert path.parent == folder / "p"
    load_checkpoint(path)


def check_clip(name: str) -> Callable[[bytes, Path], None]:
    def check(content: bytes, folder: Path) -> None:
        (folder / name).write_bytes(content)
        describe(f"openai:{folder / name}")
        assert all(torch.isfinite(p).all() for p in load_clip(f"openai:{folder / name}").model.parameters())

    return check


def check_features(content: bytes, folder: Path) -> None:
    path = FeatureFile(folder, {}, 4).path
    path.write_bytes(content)
    store = FeatureFile(folder, {}, 4)
    assert torch.isfinite(store.get([*store._place])).all()


def check_bundle(content: bytes, folder: Path) -> None:
    (folder / bundle.FILE_NAME).write_bytes(content)
    read_bundle(folder)


def check_split(content: bytes, folder: Path) -> None:
    data = DataFolder(EUROSAT, folder)
    (data.images / "A").mkdir(parents=True)
    for i in range(4):
        (data.images / "A" / f"{i}.jpg").touch()
    (data.path / EUROSAT.published_split).write_bytes(content)
    split = load_split(data)
    assert {record.label for record in split.train} == set(range(len({record.label for record in split.train})))


def check_vocabulary(suffix: str) -> Callable[[bytes, Path], None]:
    def check(content: bytes, folder: Path) -> None:
        (folder / f"v.{suffix}").write_bytes(content)
        assert load_vocabulary(str(folder / f"v.{suffix}"), exclude=["cat"])

    return check


def check_classnames(content: bytes, folder: Path) -> None:
    (folder / "names.txt").write_bytes(content)
    found = read_class_names(folder / "names.txt")
    assert found and len(set(found)) == len(found)


def check_image(content: bytes, folder: Path) -> None:
    (folder / "image").write_bytes(content)
    assert open_image(folder / "image").mode == "RGB"


def check_training_image(content: bytes, folder: Path) -> None:
    from dassl.utils import read_image

    (folder / "image").write_bytes(content)
    assert read_image(folder / "image").mode == "RGB"


def check_archive(content: bytes, folder: Path) -> None:
    (folder / "archive").write_bytes(content)
    (folder / "inside").mkdir()
    try:
        unpack(folder / "archive", folder / "inside")
    finally:
        assert {path.name for path in folder.iterdir()} == {"archive", "inside"}
        assert not any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in folder.rglob("*"))


def check_results(content: bytes, folder: Path) -> None:
    (folder / "results.json").write_bytes(content)
    read_results(folder)


def check_results_are_added(content: bytes, folder: Path) -> None:
    """A result is added to what the file held, or the file is refused and stays."""
    (folder / "results.json").write_bytes(content)
    try:
        write_results(folder, RUN, result())
    except ValueError:
        assert (folder / "results.json").read_bytes() == content
    else:
        assert any(entry["dataset"] == "EmojiMeals" for entry in read_results(folder)["results"])


def check_sweep(content: bytes, folder: Path) -> None:
    (folder / "sweep.yaml").write_bytes(content)
    runs_of(read_sweep(folder / "sweep.yaml", str(folder), str(folder / "out")))


def some_yaml() -> bytes:
    return (ROOT / "configs/trainers/KDPL_CoOp/vit_b32_ctxv1.yaml").read_bytes()


def some_sweep() -> bytes:
    return (ROOT / "configs/sweeps/emoji.yaml").read_bytes()


@cache
def keys() -> list[str]:
    def below(node, prefix):
        for key, value in node.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from below(value, f"{prefix}{key}.")

    return sorted(below(default_config(), ""))


values = st.one_of(
    st.text(max_size=20),
    st.integers().map(str),
    st.floats().map(str),
    json_values.map(repr),
    st.sampled_from(["(1, 2)", "[", "'", "None", "True", "1e999", "-1", "0", "((((", "9" * 5000, "{1: 2}", "\0", "a.b"]),
)
options = st.lists(st.one_of(st.deferred(lambda: st.sampled_from(keys())), st.text(max_size=12), values), max_size=6)
lines = st.lists(st.one_of(st.text(max_size=20), st.sampled_from(["cat", "dog", "cat", "a,b", '"', "x" * 5000])), max_size=6)
text = st.one_of(lines.map(lambda found: "\n".join(found).encode("utf-8", "surrogatepass")), st.binary(max_size=64))
csv_text = st.one_of(
    text, text.map(lambda content: b"LabelName,DisplayName\n" + content), text.map(lambda c: b"ClassName\n" + c)
)

TARGETS = {
    "configuration file": Target(as_bytes(some_yaml), check_yaml, ConfigError),
    "KEY VALUE": Target(options, check_options, ConfigError),
    "sweep": Target(as_bytes(some_sweep), check_sweep, ConfigError),
    "checkpoint": Target(
        st.one_of(as_bytes(checkpoint_bytes), damaged_members(checkpoint_bytes, "data.pkl")), check_checkpoint, CheckpointError
    ),
    "pointer to the newest checkpoint": Target(
        st.one_of(text, st.sampled_from([b"..", b".", b"/etc/passwd", b"a" * 5000])), check_pointer, CheckpointError
    ),
    "CLIP, safetensors": Target(as_bytes(lambda: save(clip_tensors()), 4000), check_clip("clip.safetensors"), WeightsError),
    "CLIP, PyTorch": Target(
        st.one_of(as_bytes(checkpoint_bytes), damaged_members(lambda: as_torch(clip_tensors()), "data.pkl")),
        check_clip("clip.pt"),
        WeightsError,
    ),
    "CLIP, TorchScript": Target(
        st.one_of(as_bytes(script_bytes), damaged_members(script_bytes, "data.pkl")), check_clip("clip.pt"), WeightsError
    ),
    "text features": Target(as_bytes(features_bytes), check_features, ()),
    "bundle": Target(
        st.one_of(
            as_bytes(lambda: bundle_bytes(json.dumps(bundle_facts()).encode())), changed_json(bundle_facts).map(bundle_bytes)
        ),
        check_bundle,
        bundle.BundleError,
    ),
    "split": Target(
        st.one_of(as_bytes(lambda: json.dumps(SPLIT).encode()), changed_json(lambda: SPLIT)),
        check_split,
        (DamagedDataError, MissingDataError),
    ),
    "vocabulary": Target(text, check_vocabulary("txt"), VocabularyError),
    "vocabulary, CSV": Target(csv_text, check_vocabulary("csv"), VocabularyError),
    "class names": Target(text, check_classnames, ValueError),
    "image": Target(
        st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]).flatmap(
            lambda f: as_bytes(lambda: image_bytes(f))
        ),
        check_image,
        BadImageError,
    ),
    "training image": Target(
        st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"]).flatmap(lambda f: as_bytes(lambda: image_bytes(f))),
        check_training_image,
        OSError,
    ),
    "archive": Target(
        st.one_of(
            tar_archives(),
            zip_archives(),
            st.sampled_from(["tar", "tar.gz", "tar.bz2", "tar.xz", "zip"]).flatmap(
                lambda kind: as_bytes(lambda: archive_bytes(kind))
            ),
        ),
        check_archive,
        (ArchiveError, OSError),
    ),
    "results": Target(
        st.one_of(as_bytes(results_bytes), changed_json(lambda: json.loads(results_bytes()))), check_results, ResultsError
    ),
    "results, added to": Target(
        st.one_of(as_bytes(results_bytes), changed_json(lambda: json.loads(results_bytes()))), check_results_are_added
    ),
}


def property_of(name: str, seen: Callable[[], None] = lambda: None, **options: Any) -> Callable[[], None]:
    """Return the property of a target, to be called without arguments; `seen` is called for every example."""

    @settings(deadline=None, database=None, suppress_health_check=list(HealthCheck), **options)
    @given(TARGETS[name].inputs)
    def ends_well(value):
        seen()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            TARGETS[name].run(value, Path(folder))

    return ends_well


SOUND = {
    "configuration file": some_yaml,
    "sweep": some_sweep,
    "checkpoint": checkpoint_bytes,
    "CLIP, safetensors": lambda: save(clip_tensors()),
    "CLIP, PyTorch": lambda: as_torch(clip_tensors()),
    "text features": features_bytes,
    "bundle": lambda: bundle_bytes(json.dumps(bundle_facts()).encode()),
    "split": lambda: json.dumps(SPLIT).encode(),
    "results": results_bytes,
    "image": lambda: image_bytes("JPEG"),
    "archive": lambda: archive_bytes("tar.gz"),
}
