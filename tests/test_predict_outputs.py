"""What predictions are written to: files, devices and links, resumed runs, folders by class; and odd folders of photos."""

import csv
import json
import os
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from support import ROOT, image_file, processes, untrained_bundle

import kdpl
from kdpl.classifier.predictions.tables import Row, Sorter, folder_name
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


def test_the_folder_of_the_output_is_the_first_word_of_kdpl_predict(prompts, photos, tmp_path, capsys):
    assert main([prompts, str(photos), "--csv", str(tmp_path / "a.csv"), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out == "" and "12 images in" in err
    assert [os.path.basename(row["path"]) for row in rows_of(tmp_path / "a.csv")] == [f"img_{i}.png" for i in range(12)]
    with pytest.raises(SystemExit):
        main([prompts])
    assert "there is no image after OUT" in capsys.readouterr().err


def test_a_terminal_shows_a_bar_with_the_time_left(prompts, photos, monkeypatch, capsys):
    for flags in ([], ["--quiet"]):
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
        assert main([prompts, str(photos), *flags]) == 0
        assert bool(re.search(r"12/12 \[\d\d:\d\d<00:00", capsys.readouterr().err)) != bool(flags)


def test_odd_entries_are_left_out_counted_by_kind_and_listed(prompts, photos, tmp_path, capsys):
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
    flags = ["--csv", str(tmp_path / "a.csv"), "--max-pixels", "60000"]
    image_file(photos / "large.png", 311)  # of no other test: its features would be cached
    assert main([prompts, str(photos), *flags]) == exits.SOME_UNREAD
    err = capsys.readouterr().err
    assert len(rows_of(tmp_path / "a.csv")) == 13
    for line in (
        "  2: the file is empty.",
        "  2: the file is truncated.",
        "  1: it is a FIFO (named pipe).",
        "  1: too many levels of symbolic links.",
    ):
        assert f"{line}\n" in err
    assert "7 could not be read" in err and "2 .CR2, 1 .MOV not read" in err and "more than 60,000 pixels" in err


def test_an_image_that_needs_too_much_memory_is_left_out(prompts, photos, monkeypatch, capsys):
    from kdpl.classifier import decoding

    def exhausted(image):
        if image.size == (307, 307):
            raise MemoryError
        return image

    large = image_file(photos / "large.png", 307)
    monkeypatch.setattr(decoding, "cut_extreme", exhausted)
    assert main([prompts, str(photos)]) == exits.SOME_UNREAD
    assert f"'{large}' cannot be read as an image: MemoryError" in capsys.readouterr().err
    bad = []
    clf = kdpl.load(prompts)
    assert len(list(clf.stream([Image.open(large)], on_bad=lambda image, error: bad.append(str(error))))) == 0
    assert "MemoryError" in bad[0]


def test_a_list_of_paths_comes_from_the_standard_input(prompts, photos, tmp_path):
    for separator in ("\n", "\0"):
        listed = separator.join([str(photos / "img_3.png"), str(photos / "gone.png"), str(photos / "img_1.png")])
        command = [sys.executable, "-m", "kdpl.predict", prompts, "-", "--json", str(tmp_path / "a.jsonl"), "--restart"]
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


def test_a_fifo_is_written_through(prompts, photos, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "pipe").read_text()))
    reader.start()
    assert main([prompts, str(photos), "--csv", str(tmp_path / "pipe")]) == 0
    reader.join(20)
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    assert len(list(csv.reader(read[0].splitlines()))) == 13


@pytest.mark.skipif(os.name != "posix", reason="devices of POSIX")
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


# --------------------------------------------------------------------------------------------------------- stop, resume


def stop_after(monkeypatch, rows):
    """Make a run end as by Ctrl-C after so many printed rows."""
    from kdpl.classifier.predictions import run

    seen = []

    def line(text):
        seen.append(text)
        if len(seen) > rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(run, "print_line", line)
    return seen


@pytest.mark.parametrize("stopped_after", [1, 6, 11])
def test_the_same_command_resumes_where_it_stopped(stopped_after, prompts, photos, tmp_path, monkeypatch, capsys):
    outputs = {kind: tmp_path / f"out.{kind}" for kind in ("csv", "json", "html")}
    command = [prompts, str(photos), "--batch-size", "1", "--no-cache"]
    command += [word for kind, path in outputs.items() for word in (f"--{kind}", str(path))]
    with monkeypatch.context() as context:
        stop_after(context, stopped_after)
        assert main(command) == 130
    assert f"{stopped_after} rows are kept, the same command resumes" in capsys.readouterr().err
    assert not any(path.exists() for path in outputs.values())
    with open(f"{outputs['csv']}.kdpl-part", "a") as file:
        file.write("a torn li")
    with monkeypatch.context() as context:
        printed = stop_after(context, 100)
        assert main(command) == 0
    assert len(printed) == 12 - stopped_after and f"{stopped_after} images were done before" in capsys.readouterr().err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.html", "out.json", "photos"]
    resumed = {kind: path.read_bytes() for kind, path in outputs.items()}
    assert main([*command, "--restart"]) == 0
    assert resumed == {kind: path.read_bytes() for kind, path in outputs.items()}


def test_rows_of_another_run_are_never_mixed_in(prompts, photos, tmp_path, monkeypatch, capsys):
    command = [prompts, str(photos), "--batch-size", "1", "--csv", str(tmp_path / "out.csv")]
    with monkeypatch.context() as context:
        stop_after(context, 4)
        assert main(command) == 130
    (tmp_path / "names.txt").write_text("apple\npizza\nroll\n")
    (tmp_path / "fewer").mkdir()
    (tmp_path / "fewer" / "x.png").write_bytes((photos / "img_0.png").read_bytes())
    capsys.readouterr()
    for other, message in (
        ([*command, "--top", "2"], "other settings (--top)"),
        ([*command, "--classnames", str(tmp_path / "names.txt")], "other settings (class names)"),
        ([*command, "--json", str(tmp_path / "out.json")], "run with the outputs"),
        ([prompts, str(tmp_path / "fewer"), *command[2:]], "rows of 4 images that are not among those given"),
    ):
        assert main(other) == exits.BAD_INPUT
        assert message in (err := capsys.readouterr().err) and "--restart" in err
    later = time.time() + 5
    os.utime(photos / "img_1.png", (later, later))
    assert main(command) == exits.BAD_INPUT and "has changed since it was predicted" in capsys.readouterr().err
    os.truncate(tmp_path / "out.csv.kdpl-part", 40)
    assert main(command) == exits.BAD_INPUT and "are not all there" in capsys.readouterr().err
    assert main([*command, "--restart"]) == 0 and len(rows_of(tmp_path / "out.csv")) == 12


KILLED = """
import sys
from kdpl.classifier.predictions import run
from kdpl.predict import main
write, run.SAVE_EVERY_S = run.State.write, 0
def write_ten(state, rows):
    if rows > 10:  # they are in the files, which the state does not tell
        print("to be killed", file=sys.stderr, flush=True)
        sys.stdin.readline()
    write(state, rows)
run.State.write = write_ten
main(sys.argv[1:])
"""


def test_a_run_that_is_killed_leaves_its_rows(prompts, photos, tmp_path):
    command = [
        prompts, str(photos), "--csv", str(tmp_path / "out.csv"),
        "--batch-size", "2", "--workers", "0", "--no-cache", "--quiet",
    ]  # fmt: skip
    line = [sys.executable, "-c", KILLED, *command]
    process = processes.Popen(line, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "to be killed\n" in iter(process.stderr.readline, "")
    process.kill()
    process.communicate()
    assert json.loads((tmp_path / "out.csv.kdpl-part.state.json").read_text())["rows"] == 10
    line = [sys.executable, str(ROOT / "predict.py"), *command]
    again = processes.run(line, capture_output=True, text=True)
    assert again.returncode == 0 and "10 images were done before" in again.stderr
    paths = [row["path"] for row in rows_of(tmp_path / "out.csv")]
    assert len(paths) == len(set(paths)) == 12


# ------------------------------------------------------------------------------------------------------------- features


def test_other_names_on_the_same_photos_decode_nothing(prompts, photos, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KDPL_CACHE", str(tmp_path / "cache"))
    command = [prompts, str(photos), "--json", str(tmp_path / "a.jsonl")]
    assert main(command) == 0
    (tmp_path / "names.txt").write_text("apple\nroll\n")
    monkeypatch.setattr("kdpl.classifier.decoding.open_image", None)  # a call would fail
    (photos / "img_3.png").rename(photos / "renamed.png")  # found by content
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


# ------------------------------------------------------------------------------------------------------ folders by class


@pytest.mark.parametrize("flag", ["--copy-to", "--link-to"])
def test_photos_are_sorted_into_folders_by_class(flag, prompts, photos, tmp_path):
    (photos / "more").mkdir()
    for source in ("img_0.png", "img_1.png"):  # the same name twice, of different pictures
        (photos / "more" / "img_0.png").write_bytes((photos / source).read_bytes())
    command = [prompts, str(photos), flag, str(tmp_path / "sorted"), "--csv", str(tmp_path / "a.csv")]
    for _ in range(2):  # again changes nothing
        assert main(command) == 0
        for row in rows_of(tmp_path / "a.csv"):
            folder = tmp_path / "sorted" / row["name"]
            same = [p for p in folder.iterdir() if p.read_bytes() == Path(row["path"]).read_bytes()]
            assert same and all(p.is_symlink() == (flag == "--link-to") for p in same)
        assert len([p for p in (tmp_path / "sorted").rglob("*.png")]) == 13


def test_folder_names_fit_every_file_system_and_are_never_shared(tmp_path):
    assert folder_name("../a:b?") == "_a_b_" and folder_name("...") == "_" and folder_name("CD/DVD") == "CD_DVD"
    with pytest.raises(ValueError, match="'a:b' and 'A/b' would share the folder 'A_b'"):
        Sorter(tmp_path, False, ["a:b", "A/b"])
    photo = image_file(tmp_path / "x.png")
    Sorter(tmp_path / "s", False, ["../up"]).add(Row(str(photo), ["../up"], [1.0]))
    assert [str(p.relative_to(tmp_path)) for p in (tmp_path / "s").rglob("*.png")] == ["s/_up/x.png"]
