"""What predictions are written to: files, devices and links, stopped runs, folders by class; and odd folders of photos."""

import csv
import json
import os
import re
import signal
import stat
import subprocess
import sys

import pytest
import torch
from PIL import Image
from support import ROOT, image_file, own_cache, processes, untrained_bundle

import kdpl
from kdpl.common import exits
from kdpl.predict import main

pytestmark = pytest.mark.slow

NAMES = ["red apple", "pizza", "croissant"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return str(untrained_bundle(tmp_path_factory.mktemp("out"), "CoOp", NAMES))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for i in range(12):
        image_file(folder / f"img_{i}.png", seed=i)
    return folder


def rows_of(path):
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_odd_entries_are_left_out_counted_by_kind_and_listed(prompts, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30_000)  # Pillow refuses twice as many
    (photos / "itself.jpg").symlink_to("itself.jpg")
    os.mkfifo(photos / "pipe.jpg")
    (photos / "again").symlink_to(photos)
    Image.new("RGB", (60_000, 1), "red").save(photos / "line.png")
    (photos / "empty.jpg").touch()
    (photos / "empty too.jpg").touch()
    for side in (64, 200):
        whole = image_file(photos / f"cut {side}.jpg", side)
        whole.write_bytes(whole.read_bytes()[:-side])
    for name in ("a.CR2", "b.CR2", "film.MOV"):
        (photos / name).touch()
    flags = ["--csv", str(tmp_path / "a.csv")]
    image_file(photos / "large.png", 311)  # of no other test: its features would be cached
    assert main([prompts, str(photos), *flags]) == exits.SOME_UNREAD
    err = capsys.readouterr().err
    assert len(rows_of(tmp_path / "a.csv")) == 13
    for line in (
        "  2: the file is empty.",
        "  2: the file is truncated.",
        "  1: it is not a regular file.",
        "  1: it is a link that leads nowhere.",
    ):
        assert f"{line}\n" in err
    assert "7 could not be read" in err and "2 .CR2, 1 .MOV not read" in err and "more than 60,000 pixels" in err


def test_a_list_of_paths_comes_from_the_standard_input(prompts, photos, tmp_path):
    for separator in ("\n", "\0"):
        listed = separator.join([str(photos / "img_3.png"), str(photos / "gone.png"), str(photos / "img_1.png")])
        command = [sys.executable, "-m", "kdpl.predict", prompts, "-", "--json", str(tmp_path / "a.jsonl")]
        process = processes.run(command, input=listed, capture_output=True, text=True, check=False)
        assert process.returncode == exits.SOME_UNREAD and "gone.png' cannot be read" in process.stderr
        rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        assert [os.path.basename(row["path"]) for row in rows] == ["img_3.png", "img_1.png"]


# --------------------------------------------------------------------------------------------------- devices and links


def test_links_are_followed_and_stay(prompts, photos, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link.csv").symlink_to("elsewhere/real.csv")
    for _ in range(2):
        assert main([prompts, str(photos), "--csv", str(tmp_path / "link.csv")]) == 0
        assert (tmp_path / "link.csv").is_symlink() and len(rows_of(tmp_path / "elsewhere" / "real.csv")) == 12
    assert sorted(p.name for p in (tmp_path / "elsewhere").iterdir()) == ["real.csv"]


def test_devices_are_written_through_and_never_replaced(prompts, photos, tmp_path, capsys):
    before = os.stat("/dev/null")
    assert main([prompts, str(photos), "--csv", "/dev/null", "--html", "/dev/null"]) == 0
    assert os.stat("/dev/null").st_rdev == before.st_rdev and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    capsys.readouterr()
    for name in ("-", "/dev/stdout"):
        command = [sys.executable, "-m", "kdpl.predict", prompts, str(photos), "--csv", name]
        with open(tmp_path / "captured.csv", "w") as file:
            assert processes.run(command, stdout=file, stderr=subprocess.DEVNULL, check=False).returncode == 0
        assert len(rows_of(tmp_path / "captured.csv")) == 12, "the table alone, without the lines for the terminal"
        piped = processes.run(command, capture_output=True, text=True, check=False).stdout
        assert len(piped.splitlines()) == 13 and os.path.islink("/dev/stdout")


# --------------------------------------------------------------------------------------------------------------- stopped


def test_a_run_that_is_stopped_leaves_no_part_of_a_file_and_the_same_command_finds_its_features(prompts, photos, tmp_path):
    command = [sys.executable, str(ROOT / "predict.py"), prompts, str(photos), "--csv", str(tmp_path / "out.csv")]
    command += ["--batch-size", "1", "--workers", "0"]
    env = {**os.environ, "KDPL_CACHE": own_cache(tmp_path / "cache")}
    process = processes.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == exits.INTERRUPTED and "Traceback" not in err
    assert err.strip().endswith("Stopped by SIGINT: the same command resumes or starts again")
    assert not list(tmp_path.glob("*out.csv*"))
    again = processes.run(command, capture_output=True, text=True, env=env)
    assert again.returncode == 0 and len(rows_of(tmp_path / "out.csv")) == 12
    assert int(re.search(r"(\d+) of them were known", again.stderr)[1]) >= 3


# ------------------------------------------------------------------------------------------------------------- features


def test_a_cache_that_holds_a_fifo_or_lies_nowhere_is_said(prompts, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    assert main([prompts, str(photos)]) == 0
    os.mkfifo(tmp_path / "cache" / "image_features" / "a.safetensors")
    assert main([prompts, str(photos)]) == 0 and "12 of them were known" in capsys.readouterr().err
    monkeypatch.setenv("KDPL_CACHE", "~nobody-of-this-name/x")
    assert main([prompts, str(photos)]) == exits.BAD_INPUT
    assert "KDPL_CACHE is '~nobody-of-this-name/x', and there is no such user" in capsys.readouterr().err


def test_other_names_on_the_same_photos_decode_nothing(prompts, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    command = [prompts, str(photos), "--json", str(tmp_path / "a.jsonl")]
    assert main(command) == 0
    (tmp_path / "names.txt").write_text("apple\nroll\n")
    monkeypatch.setattr("kdpl.classifier.decoding.open_image", None)  # a call would fail
    capsys.readouterr()
    assert main([*command, "--classnames", str(tmp_path / "names.txt")]) == 0
    assert "12 of them were known" in capsys.readouterr().err
    monkeypatch.undo()
    clf = kdpl.load(prompts)
    clf.classnames = ["apple", "roll"]
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    found = torch.tensor([dict(zip(row["names"], row["probabilities"], strict=True))["apple"] for row in rows])
    assert torch.allclose(found, clf([row["path"] for row in rows])[:, 0], atol=1e-6)


def test_features_of_changed_photos_and_other_prompts_are_computed(photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    learned = [str(untrained_bundle(tmp_path / name, "VPT", NAMES)) for name in "ab"]  # random image prompts, two draws
    for prompts, known in ((learned[0], 0), (learned[0], 12), (learned[1], 0)):
        assert main([prompts, str(photos), "--json", str(tmp_path / "a.jsonl")]) == 0
        err = capsys.readouterr().err
        assert ("12 of them were known" in err) == (known == 12)
    image_file(photos / "img_0.png", seed=99)
    assert main([learned[1], str(photos), "--json", str(tmp_path / "a.jsonl")]) == 0
    assert "11 of them were known" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    expected = kdpl.load(learned[1])([row["path"] for row in rows])
    found = torch.tensor([[dict(zip(r["names"], r["probabilities"], strict=True))[n] for n in NAMES] for r in rows])
    assert torch.allclose(found, expected, atol=1e-6)
