"""The lock on an output folder: one run at a time, and nothing is moved from under a run."""

import os
import subprocess
import sys

import pytest
from support import ROOT, processes, release

from kdpl.common import lock
from kdpl.trainers.run import move_aside

HOLD = """
import sys
from kdpl.common import lock
for _ in range(2):
    lock.occupy(sys.argv[1])
print("held", flush=True)
input()
"""


def holding(folder):
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    process = processes.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes)
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_a_lock_is_held_as_long_as_its_process_lives(tmp_path):
    with holding(tmp_path) as process:
        with pytest.raises(lock.OccupiedError, match=f"in use by process {process.pid} on host"):
            lock.occupy(tmp_path)
        process.kill()
    lock.occupy(tmp_path)
    assert lock.holder(tmp_path)["pid"] == os.getpid()
    release(tmp_path)


@pytest.mark.slow
def test_a_folder_is_not_moved_aside_while_a_run_below_it_is_at_work(tmp_path):
    out = tmp_path / "out"
    child = out / "a" / "child"
    for folder in (out, child, out / "before-1"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "results.json").write_text("{}")
    with holding(child) as process:
        with pytest.raises(lock.OccupiedError, match=rf"{child}' is in use by process {process.pid} .*cannot be moved aside"):
            move_aside(out)
        assert (out / "results.json").exists() and (child / "results.json").exists()
        process.communicate("\n")
    move_aside(out)
    assert {p.name for p in out.iterdir()} == {"before-1", "before-2"}
    assert (out / "before-2" / "a" / "child" / "results.json").exists()
