"""predict.py: any names for any images, checked first, broken ones left out, and whole files or none."""

import csv
import json
import os
import re
import subprocess
import sys

import pytest
import torch
from support import ROOT, image_file, untrained_bundle

import kdpl
from kdpl import exits
from kdpl.classnames import ClassNamesError, read_classnames
from kdpl.predict import main

NAMES = ["red apple", "pizza", 'curry, "hot"', "🥐 croissant"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return untrained_bundle(tmp_path_factory.mktemp("out"), "CoOp", NAMES)


@pytest.fixture
def photos(tmp_path):
    """A folder of five images, one of them deeper, a broken one, a hidden one, and a text file."""
    folder = tmp_path / "my photos"
    for i in range(4):
        image_file(folder / f"{i}.png", seed=i)
    image_file(folder / "deeper" / "5, \u00e9.png", seed=5)
    (folder / "broken.jpg").write_bytes(image_file(folder / "whole.jpg", seed=6).read_bytes()[:300])
    (folder / "whole.jpg").unlink()
    image_file(folder / ".hidden.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def predicted(lines: str) -> dict[str, list[tuple[str, float]]]:
    rows = [line.split("\t") for line in lines.splitlines()]
    return {path: [(f.rpartition(" ")[0], float(f.rpartition(" ")[2])) for f in fields] for path, *fields in rows}


def test_all_outputs_agree_with_the_python_object(prompts, photos, tmp_path, capsys):
    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "html")}
    flags = [word for kind, path in outputs.items() for word in (f"--{kind}", str(path))]
    status = main(["--prompts", str(prompts), str(photos), "--top", "3", "--batch-size", "2", *flags])
    out, err = capsys.readouterr()
    assert status == exits.SOME_UNREAD and "broken.jpg' cannot be read" in err
    paths = sorted(str(p) for p in photos.rglob("*.png") if not p.name.startswith("."))
    assert len(paths) == 5 and sorted(predicted(out)) == paths
    values, indices = kdpl.load(prompts)(paths).topk(3)
    table = {row.pop("path"): list(row.values()) for row in csv.DictReader(outputs["csv"].open(encoding="utf-8", newline=""))}
    lines = {row["path"]: row for row in map(json.loads, outputs["json"].read_text(encoding="utf-8").splitlines())}
    html = outputs["html"].read_text(encoding="utf-8")
    assert sorted(table) == sorted(lines) == paths
    for path, row_values, row_indices in zip(paths, values, indices.tolist(), strict=True):
        names = [NAMES[i] for i in row_indices]
        printed_names, printed = zip(*predicted(out)[path], strict=True)
        assert list(printed_names) == lines[path]["names"] == table[path][::2] == names
        for found, precision in ((printed, 1e-4), (lines[path]["probabilities"], 1e-6), (table[path][1::2], 1e-6)):
            assert torch.allclose(torch.tensor([float(p) for p in found]), row_values, atol=precision, rtol=0)
        assert json.dumps(path) in html


def test_other_class_names_are_told_apart(prompts, photos, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\ufeffsushi, raw\r\n\r\n🍇 grapes\r\n", encoding="utf-8")
    image = str(photos / "0.png")
    assert main(["--prompts", str(prompts), image, "--classnames", str(tmp_path / "names.txt")]) == 0
    ((path, names),) = predicted(capsys.readouterr().out).items()
    assert path == image and sorted(name for name, _ in names) == ["sushi, raw", "🍇 grapes"]
    assert sum(p for _, p in names) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere.jpg"], r"There is no 'nowhere\.jpg' in '.*': expected image files or folders"),
        (["{photos}", "--top", "0"], "--top is 0, expected at least 1"),
        (["{photos}", "--batch-size", "0"], "--batch-size is 0"),
        (["{photos}", "--workers", "-1"], "--workers is -1, expected at least 0"),
        (["{empty}"], r"holds no image, at any depth \(1 other files\)"),
        (["{photos}", "--csv", "{photos}"], "is a folder: expected the path of a file"),
        (["{photos}", "--csv", "{empty}/a", "--json", "{empty}/a"], "stands for two outputs"),
        (["{photos}", "--csv", "{photos}/0.png"], "is one of the images"),
        (["{photos}", "--classnames", "{photos}/no.txt"], r"--classnames '.*no\.txt' is not a file"),
        (["{photos}", "--device", "abacus"], r"--device 'abacus' cannot be used \(.*\): expected cpu"),
        (["{photos}", "--prompts", "{empty}"], r"There is no '.*prompts\.safetensors'"),
    ],
)
def test_what_cannot_work_is_refused_before_any_image_is_read(flags, message, prompts, photos, tmp_path, capsys):
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "notes.txt").write_text("no image")
    argv = ["--prompts", str(prompts), *(flag.format(photos=photos, empty=empty) for flag in flags)]
    assert main(argv) == exits.BAD_INPUT
    out, err = capsys.readouterr()
    assert out == "" and re.search(message, err), err
    assert sorted(p.name for p in empty.iterdir()) == ["notes.txt"]


def test_prompts_without_class_names_ask_for_them(photos, tmp_path, capsys):
    folder = untrained_bundle(tmp_path / "out", "CoOp", [])
    assert main(["--prompts", str(folder), str(photos)]) == exits.BAD_INPUT
    assert "give yours, one a line, as --classnames FILE" in capsys.readouterr().err


def test_a_run_that_fails_leaves_the_previous_files(prompts, photos, tmp_path, capsys):
    table = tmp_path / "out.csv"
    table.write_text("previous")
    (tmp_path / "names.txt").write_text("a\n" + "very " * 100 + "long name\n")
    argv = ["--prompts", str(prompts), str(photos), "--csv", str(table), "--classnames", str(tmp_path / "names.txt")]
    assert main(argv) == exits.BAD_INPUT
    assert "longer than the text tower's" in capsys.readouterr().err
    assert table.read_text() == "previous" and sorted(p.name for p in tmp_path.glob("*.csv*")) == ["out.csv"]


@pytest.mark.skipif(os.name != "posix", reason="file names are bytes on POSIX alone")
def test_a_reader_that_leaves_and_a_name_that_is_not_text_stop_nothing(prompts, tmp_path):
    folder = tmp_path / "photos"
    for i in range(3):
        image_file(folder / f"{i}.png", seed=i)
    os.rename(folder / "0.png", os.fsencode(folder) + b"/two\nlines \xff.png")
    command = [
        sys.executable, str(ROOT / "predict.py"), "--prompts", str(prompts), str(folder), "--batch-size", "1",
        "--csv", str(tmp_path / "out.csv"), "--device", "cpu",
    ]  # fmt: skip
    reader, writer = os.pipe()
    os.close(reader)
    process = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(writer)
    assert process.returncode == 0 and "Traceback" not in process.stderr and "BrokenPipe" not in process.stderr
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8", newline="")))
    assert [os.path.basename(row["path"]) for row in rows] == ["1.png", "2.png", "two\nlines \\udcff.png"]


def test_files_of_class_names_are_read_as_people_write_them(tmp_path):
    file = tmp_path / "names.txt"
    for text, message in (
        (b"cat\ndog\n cat\n", r"has 'cat' on lines 1 and 3"),
        (b"\n \n", "holds no name"),
        (b"caf\xe9\n", r"not UTF-8 text \(byte 3\)"),
        (b"cat\x00dog", "control characters"),
    ):
        file.write_bytes(text)
        with pytest.raises(ClassNamesError, match=message):
            read_classnames(file, "--classnames")
    file.write_bytes("salt, pepper\n👩\u200d🚀 astronaut\n".encode())
    assert read_classnames(file, "--classnames") == ["salt, pepper", "👩\u200d🚀 astronaut"]
