"""The lock on an output folder: one run at a time, never through a link, and nothing is moved from under a run."""

import os
import subprocess
import sys

import pytest
from support import ROOT, processes, release

from kdpl.common import lock
from kdpl.trainers.run import move_aside


@pytest.mark.slow
def test_a_lock_is_held_as_long_as_its_process_lives(tmp_path):
    holder = (
        f"import time\nfrom kdpl.common import lock\nlock.occupy({str(tmp_path)!r})\nlock.occupy({str(tmp_path)!r})\n"
        "print('held', flush=True)\ntime.sleep(60)"
    )
    with processes.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(lock.OccupiedError, match=f"process {process.pid} on host"):
            lock.occupy(tmp_path)
        process.kill()
    lock.occupy(tmp_path)
    assert (tmp_path / lock.FILE_NAME).read_bytes() == b""
    assert lock.holder(tmp_path) == lock.this_process() | {"started": lock.holder(tmp_path)["started"]}
    release(tmp_path)


@pytest.mark.parametrize("make", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_the_lock_is_never_written_through_a_link(make, tmp_path):
    target, folder = tmp_path / "thesis.tex", tmp_path / "out"
    folder.mkdir()
    for name in (lock.FILE_NAME, lock.HOLDER):
        target.write_text("years of work")
        make(target, folder / name)
        if name == lock.FILE_NAME:
            with pytest.raises(OSError, match=r"run.lock' is a link or not a regular file.*: remove it"):
                lock.occupy(folder)
            (folder / name).unlink()
        else:
            lock.occupy(folder)
            release(folder)
        assert target.read_text() == "years of work"


def test_odd_entries_in_the_place_of_a_lock_are_refused_and_not_waited_for(tmp_path):
    for name, make in ((lock.FILE_NAME, os.mkfifo), (lock.FILE_NAME, os.mkdir), (lock.HOLDER, os.mkdir)):
        folder = tmp_path / f"{name}{make.__name__}"
        folder.mkdir()
        make(folder / name)
        with pytest.raises(OSError, match=name):
            lock.occupy(folder)
        assert [path.name for path in folder.iterdir() if path.name != lock.FILE_NAME] == [name] * (name == lock.HOLDER)
    os.symlink("itself", tmp_path / "itself")
    with pytest.raises(OSError, match="itself"):
        lock.occupy(tmp_path / "itself")
    os.symlink(tmp_path / "later", tmp_path / "dangling")  # a disk that is not mounted yet, say: the run makes its folder
    lock.occupy(tmp_path / "dangling")
    assert (tmp_path / "later" / lock.HOLDER).is_file()
    release(tmp_path / "later")


@pytest.mark.slow
def test_a_folder_is_not_moved_aside_while_a_run_below_it_is_at_work(tmp_path):
    """By another process, which a thread cannot stand for: its lock would be this process's own."""
    out = tmp_path / "out"
    for folder in (out, out / "a" / "child", out / "before-1"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text("{}")
    for child in (out / "a" / "child",):
        code = f"from kdpl.common import lock\nlock.occupy({str(child)!r})\nprint('held', flush=True)\ninput()"
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
        with processes.Popen([sys.executable, "-c", code], **pipes) as process:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(
                lock.OccupiedError, match=rf"{child}' is in use by process {process.pid} .*cannot be moved aside"
            ):
                move_aside(out)
            assert (out / "results.json").exists() and (child / "results.json").exists()
            process.communicate("\n")
    move_aside(out)
    assert {p.name for p in out.iterdir()} == {"before-1", "before-2"}
    assert (out / "before-2" / "a" / "child" / "results.json").exists()


def test_a_process_that_ended_or_another_of_its_number_does_not_live():
    this = lock.this_process()
    assert lock.lives(this) and lock.lives({**this, "host": "another", "born": ""})
    assert not lock.lives({**this, "born": "0"}) and not lock.lives({**this, "pid": 2**22 + 1})


def test_a_run_that_ends_by_itself_leaves_no_note_and_is_not_taken_over(tmp_path, capsys):
    code = "from kdpl.common import lock; import sys; lock.occupy(sys.argv[1]); print(lock.holder(sys.argv[1])['pid'])"
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=True)
    assert not (tmp_path / lock.HOLDER).exists()
    lock.occupy(tmp_path)
    release(tmp_path)
    assert capsys.readouterr().out == ""
