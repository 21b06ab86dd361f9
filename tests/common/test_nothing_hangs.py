"""Nothing hangs and nothing explodes: FIFOs, alias bombs, deep nesting, endless numbers, archives of claimed gigabytes."""

import json
import os
import resource
import struct
import sys
import zipfile

import pytest
import yaml
from support import ROOT, processes, release
from support.files import sweep_file

from kdpl.common import lock
from kdpl.common.safe_text import UnsafeTextError, parse_yaml, read_json, read_text
from kdpl.config.keys import ConfigError
from kdpl.config.manifest import read_manifest
from kdpl.config.merging import merge_file, merged_cfg
from kdpl.datasets.prepare import ArchiveError, unpack
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.training.pixels import read_image
from kdpl.training.results import ResultsError, read_results

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(f'*{old}' for _ in range(10))}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
DEEP_YAML = "a: " + "[" * 1000 + "]" * 1000
MANY_ALIASES = "a: &a x\nb: [" + ", ".join(["*a"] * 5000) + "]"
DEEP_JSON = "[" * 200_000 + "]" * 200_000
LONG_NUMBER = '{"schema": ' + "9" * 6000 + "}"
SECONDS = 20


@pytest.mark.parametrize("text", [BOMB, DEEP_YAML, MANY_ALIASES], ids=["aliases of aliases", "deep", "many aliases"])
def test_yaml_that_stands_for_more_than_it_holds_is_refused(text, tmp_path):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"x.yaml' is not readable YAML: the file (has aliases|is nested)"):
        merge_file(merged_cfg((), {}, []), tmp_path / "x.yaml")
    with pytest.raises(ConfigError, match=r"some.yaml' is not readable YAML"):
        read_sweep(sweep_file(tmp_path, text))


def test_plain_aliases_are_understood():
    assert parse_yaml("a: &a [1, 2]\nb: *a\n", "x", yaml.SafeLoader) == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("text", [DEEP_JSON, LONG_NUMBER, '"' + "x" * 100], ids=["deep", "long number", "cut off"])
def test_json_that_python_cannot_take_is_refused(text, tmp_path):
    for name in ("results.json", "manifest.json", lock.FILE_NAME):
        (tmp_path / name).write_text(text)
    with pytest.raises(UnsafeTextError, match="is not JSON"):
        read_json(tmp_path / "results.json")
    with pytest.raises(ResultsError, match=r"results.json' is damaged"):
        read_results(tmp_path)
    assert read_manifest(tmp_path) is None and lock.holder(tmp_path) == {}
    lock.occupy(tmp_path)
    release(tmp_path)


@pytest.mark.slow
def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.jpg")
    code = f"from kdpl.training.pixels import read_image\nread_image({str(tmp_path / 'x.jpg')!r})"
    process = processes.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)
    assert "cannot be read as an image (OSError: it is not a regular file)" in process.stderr
    with pytest.raises(UnsafeTextError, match="is not a regular file"):
        read_text(tmp_path / "x.jpg")
    with pytest.raises(OSError, match="not a regular file"):
        read_image("/dev/zero")


def test_a_text_that_is_too_large_is_refused_before_it_is_read(tmp_path):
    with open(tmp_path / "x.json", "wb") as file:
        file.truncate(2**40)
    with pytest.raises(UnsafeTextError, match="has more than 1,000 bytes"):
        read_text(tmp_path / "x.json", 1000)


def zip_that_claims(path, members, size, large=False):
    """Write a zip archive whose end record, or its 64-bit one, claims so many members, and so many bytes of names."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")
    data = bytearray(path.read_bytes())
    at = data.rfind(b"PK\5\6")
    (start,) = struct.unpack("<I", data[at + 16 : at + 20])
    if large:
        record = b"PK\6\6" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, members, members, size, start)
        data[at:at] = record + b"PK\6\7" + struct.pack("<IQI", 0, at, 1)
        at = data.rfind(b"PK\5\6")
        members, size = 0xFFFF, 0xFFFFFFFF
    data[at + 10 : at + 16] = struct.pack("<HI", min(members, 0xFFFF), min(size, 0xFFFFFFFF))
    path.write_bytes(data)


@pytest.mark.parametrize(("members", "size", "large"), [(10, 2**31, False), (10, 2**40, True)])
def test_an_archive_that_claims_gigabytes_of_names_is_refused_unread(members, size, large, tmp_path):
    zip_that_claims(tmp_path / "x.zip", members, size, large)
    (tmp_path / "out").mkdir()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ArchiveError, match=r"x.zip is (damaged|neither a zip)"):  # releases of Python differ
        unpack(tmp_path / "x.zip", tmp_path / "out")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000 and not list((tmp_path / "out").iterdir())


def test_a_manifest_of_another_kind_of_json_is_none(tmp_path):
    for content in ({"format": 1}, {"format": 1, "config": {}, "facts": 3, "environment": {}, "changes": []}, "text"):
        (tmp_path / "manifest.json").write_text(json.dumps(content))
        assert read_manifest(tmp_path) is None
