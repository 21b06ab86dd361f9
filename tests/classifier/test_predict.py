"""predict.py: any names for any images, checked first, broken ones left out, and whole files or none."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT, image_file, processes, run_train, untrained_bundle

import kdpl
from kdpl.common import exits
from kdpl.common.images import ORIENTATION
from kdpl.common.safe_text import read_class_names
from kdpl.datasets.emoji.scenes import draw, scenes_of
from kdpl.photos.fit import main as fit
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
        (["{empty}"], r"holds no images, at any depth \(1 other files\)"),
        (["{photos}", "--csv", "{photos}/0.png"], "has the name of an image"),
        (["{photos}", "--device", "abacus"], r"--device 'abacus' cannot be used \(.*\): expected a device"),
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


def test_a_run_that_fails_leaves_the_previous_files(prompts, photos, tmp_path, capsys):
    table = tmp_path / "out.csv"
    table.write_text("previous")
    (tmp_path / "names.txt").write_text("a\n" + "very " * 100 + "long name\n")
    argv = ["--prompts", str(prompts), str(photos), "--csv", str(table), "--classnames", str(tmp_path / "names.txt")]
    assert main(argv) == exits.BAD_INPUT
    assert "the text tower takes at most 77: shorten the name" in capsys.readouterr().err
    assert table.read_text() == "previous" and sorted(p.name for p in tmp_path.glob("*.csv*")) == ["out.csv"]


@pytest.mark.slow
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
    process = processes.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, cwd=tmp_path)
    os.close(writer)
    assert process.returncode == 0 and "Traceback" not in process.stderr and "BrokenPipe" not in process.stderr
    rows = list(csv.DictReader((tmp_path / "out.csv").open(encoding="utf-8", newline="")))
    assert [os.path.basename(row["path"]) for row in rows] == ["1.png", "2.png", "two\nlines \\udcff.png"]


def test_files_of_class_names_are_read_as_people_write_them(tmp_path):
    file = tmp_path / "names.txt"
    for text, message in (
        (b"red_cat\ndog\n red cat\n", r"'red cat' twice \('red_cat'\)"),
        (b"\n \n", "is empty"),
        (b"caf\xe9\n", "not UTF-8 text"),
        ("cat\ndog\n".encode("utf-16-le"), "it has null characters.*save it as UTF-8"),
        (b"# my classes\ncat\n", "has the comment '# my classes': remove it"),
    ):
        file.write_bytes(text)
        with pytest.raises(ValueError, match=message):
            read_class_names(file)
    for encoding in ("utf-8-sig", "utf-16"):
        file.write_bytes("salt, pepper\nécureuil\n👩\u200d🚀 astronaut\n".encode(encoding))
        assert read_class_names(file) == ["salt, pepper", "écureuil", "👩\u200d🚀 astronaut"]


def test_names_of_which_one_says_nothing_are_refused(prompts, photos, tmp_path, capsys):
    for names, message in (
        ("tennis\nTennis\n", "has 'Tennis' and 'tennis', which are the same words to CLIP"),
        ("cafe &amp; bar\nCafe & Bar\n", "which are the same words"),
        ("pizza\n", "one class name alone, 'pizza', and every image would be it"),
    ):
        (tmp_path / "names.txt").write_text(names, encoding="utf-8")
        assert main([str(prompts), str(photos), "--classnames", str(tmp_path / "names.txt")]) == exits.BAD_INPUT
        assert re.search(message, capsys.readouterr().err)


SAME = ["giraffe", "zebra", "chair", "pizza", "banana"]  # the embedded models know the last two


def test_words_that_a_clip_does_not_know_are_named(tmp_path, capsys):
    prompts = untrained_bundle(tmp_path / "out", "CoOp", SAME)
    assert main([str(prompts), str(image_file(tmp_path / "photo.png"))]) == 0
    expected = r"Warning: To 'emoji_student' these names are the same, .*: 'giraffe', 'zebra', 'chair'\. Use other words"
    assert re.search(expected, capsys.readouterr().err)


def test_a_fit_of_names_that_are_the_same_to_the_teacher_is_refused(tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for i, scene in enumerate(draw(scenes_of("meals")[:8])):
        Image.fromarray(scene).save(photos / f"{i}.png")
    (tmp_path / "names.txt").write_text("\n".join(SAME))
    models = ["--student", "emoji_student", "--teacher", "emoji_teacher", "--quiet"]
    assert fit([str(photos), str(tmp_path / "names.txt"), "-o", str(tmp_path / "out"), *models]) == exits.BAD_INPUT
    assert "To 'emoji_teacher' these names are the same" in capsys.readouterr().err
    assert not (tmp_path / "out/prompts.safetensors").exists()


# -------------------------------------------------------------------------------------- from a folder to predictions


def odd_photos(folder):
    """Write one scene as files that people have, and what is no image; return how many are images."""
    image, exif = Image.fromarray(draw(scenes_of("meals")[:1])[0]), Image.Exif()
    exif[ORIENTATION] = 6
    (folder / "album, 2024").mkdir(parents=True)
    image.transpose(Image.Transpose.ROTATE_90).save(folder / "turned.jpg", exif=exif)
    image.save(folder / "album, 2024" / "ordinary.jpg")
    image.convert("CMYK").save(folder / "printed.jpg")
    image.convert("RGBA").save(folder / "alpha.png")
    Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257).save(folder / "deep.png")
    (folder / "truncated.jpg").write_bytes((folder / "turned.jpg").read_bytes()[:700])
    (folder / "text.jpg").write_text("not an image")
    image.save(folder / ".hidden.jpg")
    return 5


@pytest.mark.slow
def test_a_folder_of_odd_photos_is_trained_on_and_predicted_in_two_commands(tmp_path, capsys):
    count = odd_photos(tmp_path / "photos")
    (tmp_path / "names.txt").write_text("\n".join(NAMES), encoding="utf-8")
    run_train(
        "--trainer", "KDPL_CoOp", "--seed", 1, "--root", tmp_path / "photos", "--output-dir", tmp_path / "out",
        "--dataset-config-file", ROOT / "configs/datasets/image_folder.yaml",
        "--config-file", ROOT / "configs/trainers/KDPL_CoOp/emoji.yaml",
        "DATASET.CLASSNAMES", tmp_path / "names.txt", "OPTIM.MAX_EPOCH", 2,
    )  # fmt: skip
    argv = [str(tmp_path / "out"), str(tmp_path / "photos"), "--top", str(len(NAMES)), "--json", str(tmp_path / "p.jsonl")]
    assert main(argv) == exits.SOME_UNREAD
    err = capsys.readouterr().err
    assert all(f"{name}.jpg' cannot be read" in err for name in ("truncated", "text")) and "hidden" not in err
    rows = {row["path"]: row for row in map(json.loads, (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines())}
    assert len(rows) == count
    classifier = kdpl.load(tmp_path / "out")
    expected = dict(zip(rows, classifier(list(rows)), strict=True))
    for path, row in rows.items():
        found = dict(zip(row["names"], row["probabilities"], strict=True))
        assert torch.allclose(torch.tensor([found[name] for name in NAMES]), expected[path], atol=1e-6, rtol=0)
    turned, ordinary = (next(path for path in rows if name in path) for name in ("turned", "ordinary"))
    (lying,) = classifier(np.asarray(Image.open(turned)))
    far, near = ((expected[ordinary] - other).abs().sum() for other in (lying, expected[turned]))
    assert near < far / 2
