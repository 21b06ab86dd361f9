"""Nothing of others is replaced: a command writes into a folder of its own, over no input, and through devices and links."""

import os
import re
import subprocess
import sys
import threading

import pytest
from support import ROOT, image_file, processes, release

from kdpl.__main__ import main
from kdpl.common import outputs
from kdpl.common.files import RECORD
from kdpl.common.images import list_images
from kdpl.common.outputs import EXPORT, FIT, GALLERY, TRAINING, OutputError, check_folder, open_output, take_folder


@pytest.mark.parametrize("kind", [FIT, TRAINING, EXPORT])
def test_a_folder_with_a_file_of_others_is_refused_and_one_of_the_same_command_is_not(kind, tmp_path):
    own = tmp_path / "own"
    take_folder(own, kind)
    (own / "later.txt").touch()
    check_folder(own, kind)
    with pytest.raises(OutputError, match=f"written by {kind}"):
        check_folder(own, "another command")
    (tmp_path / "others").mkdir()
    check_folder(tmp_path / "others", kind)
    (tmp_path / "others" / "names.txt").touch()
    with pytest.raises(OutputError, match=f"{kind} did not write, 'names.txt'"):
        take_folder(tmp_path / "others", kind)
    assert not (tmp_path / "others" / RECORD).exists()
    with pytest.raises(OutputError, match="is a file"):
        check_folder(tmp_path / "others" / "names.txt", kind)


def test_an_output_folder_inside_the_photos_is_refused_also_by_another_path(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    for folder in ("photos", "photos/out", "link/a/out", "photos/../photos/out"):
        with pytest.raises(OutputError, match="inside the photos' folder"):
            check_folder(tmp_path / folder, FIT, tmp_path / "photos")


def test_what_a_command_has_written_below_photos_are_no_photos(tmp_path):
    take_folder(tmp_path / "gallery_files", GALLERY)
    photo = image_file(tmp_path / "a.png")
    image_file(tmp_path / "gallery_files" / "b.webp")
    assert list_images(tmp_path).images == [photo] and len(list_images(tmp_path / "gallery_files").images) == 1


@pytest.fixture
def given(tmp_path):
    """Inputs of the commands: photos (one without a suffix), labels, names, prompts."""
    out, photos = tmp_path / "OUT", tmp_path / "photos"
    take_folder(out, FIT)
    photos.mkdir()
    image_file(photos / "a.png").rename(photos / "plain")
    image_file(photos / "a.png")
    for name in ("OUT/prompts.safetensors", "OUT/fit.json", "OUT/photos.json"):
        (tmp_path / name).write_text("{}")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    (tmp_path / "labels.csv").write_text(f"path,label\n{photos / 'a.png'},cat\n")
    os.link(tmp_path / "names.txt", tmp_path / "hard_link.txt")
    (tmp_path / "link.txt").symlink_to(tmp_path / "names.txt")
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        "eval OUT --labels labels.csv --csv labels.csv",
        "eval OUT --labels labels.csv --csv photos/a.png",
        "predict OUT photos --classnames names.txt --csv link.txt",
        "predict OUT photos --classnames names.txt --csv hard_link.txt",
        "predict OUT photos --csv OUT/photos.json",
        "predict OUT photos/plain --csv photos/plain",
        "predict OUT photos --csv OUT/prompts.safetensors",
        "predict OUT photos --classnames names.txt --json names.txt",
        "predict OUT photos --json t.csv --csv t.csv",
        "predict OUT photos --csv names.txt/t.csv",
        "predict OUT photos --copy-to photos/sorted",
        "export OUT --head OUT/prompts.safetensors",
        "export OUT site --no-page",
        "fit --demo -o site",
        "fit photos names.txt -o photos/out",
    ],
)
def test_a_command_refuses_such_an_output_before_any_work_and_changes_nothing(command, given, monkeypatch, capsys):
    monkeypatch.chdir(given)
    before = {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}
    assert main(command.split()) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert (error[-1].startswith("error: ") and "output" in error[-1]) or "did not write" in error[-1]
    assert before == {path: path.read_bytes() for path in given.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("predict photos OUT", "There is no 'photos/prompts.safetensors', expected OUT first"),
        ("predict nowhere photos", "There is no 'nowhere'"),
        ("predict OUT nowhere.png", "There is no 'nowhere.png'"),
        ("eval OUT --labels nowhere.csv", "There is no file of labels 'nowhere.csv'"),
        ("export nowhere new", "There is no 'nowhere'"),
    ],
)
def test_what_is_not_there_is_said_before_pytorch_is_imported(command, message, given):
    code = f"import sys; from kdpl.__main__ import main; status = main({command.split()!r}); assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; sys.exit(status)"], cwd=given, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_training_and_fit_refuse_each_others_folder(given, capsys):
    from kdpl.train import main as train

    take_folder(given / "run", TRAINING)
    (given / "run" / "prompts.safetensors").touch()
    assert main(["fit", str(given / "photos"), str(given / "names.txt"), "-o", str(given / "run")]) == 2
    assert "was written by train.py" in capsys.readouterr().err
    emoji = "--trainer ZeroshotCLIP --dataset-config-file configs/datasets/emoji_meals.yaml --root x --output-dir"
    assert train([*emoji.split(), str(given / "OUT")]) == 2
    assert "was written by kdpl fit, and train.py would" in capsys.readouterr().err


def test_links_and_devices_are_written_through(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    with open_output(tmp_path / "link", "w") as file:
        file.write("text")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_text() == "text"
    os.mkfifo(tmp_path / "fifo")
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / "fifo").read_text()), daemon=True)
    reader.start()
    with open_output(tmp_path / "fifo", "w") as file:
        file.write("text")
    reader.join(10)
    assert read == ["text"] and (tmp_path / "fifo").is_fifo()
    with open_output("/dev/null", "w") as file:
        file.write("text")
    assert os.stat("/dev/null").st_rdev == os.makedev(1, 3)


@pytest.mark.slow
def test_a_folder_is_locked_as_long_as_its_run_lives(tmp_path):
    code = "import sys; from kdpl.common.outputs import occupy; [occupy(sys.argv[1]) for _ in 'ab']; print('held'); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with processes.Popen([sys.executable, "-u", "-c", code, str(tmp_path)], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(outputs.OccupiedError, match=f"in use by process {process.pid} on host"):
            outputs.occupy(tmp_path)
        process.kill()
    outputs.occupy(tmp_path)
    release(tmp_path)
