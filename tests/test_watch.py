"""No rank waits alone: a launcher that dies and a rank that stops end the job, by name, and free the output folder."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT, emoji_args, mostly_slow, processes, release
from support.ranks import environment, torchrun

from kdpl.common import lock

LONG = (
    *("DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 500, "TRAIN.PRINT_FREQ", 4),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", 10, "DATALOADER.NUM_WORKERS", 0),
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for processes in /proc")]


@contextlib.contextmanager
def two_ranks(output, until: str, **env):
    """Yield launcher, ranks and log once `until` is printed, or at once when the ranks exist; none of them is left behind."""
    log = output.parent / "log.txt"
    command = torchrun(2, ROOT / "train.py", *emoji_args("KDPL_CoOp", output), *map(str, LONG))
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env={**environment(), **env}, start_new_session=True)
    deadline, ranks = time.monotonic() + 120, []
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        while len(ranks) < 2 or until not in log.read_text():
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
            ranks = [int(pid) for pid in children.read_text().split()]
        yield process, ranks, log
    finally:
        for pid in (process.pid, *ranks):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()


def is_there(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_free(output):
    """Whether a run may start there; a process counts as ended a moment before its last thread gives the lock back."""
    try:
        lock.occupy(output)
    except lock.OccupiedError:
        return False
    release(output)
    return True


@pytest.mark.parametrize(
    "until",
    mostly_slow(
        [pytest.param("", id="while ranks start"), pytest.param("\nepoch [", id="during training")],
        sample=("while ranks start",),
    ),
)
def test_a_launcher_that_dies_ends_its_ranks_and_frees_the_folder(until, tmp_path):
    with two_ranks(tmp_path / "out", until) as (process, ranks, log):
        if not until:
            time.sleep(1)  # importing
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 30
        while any(map(is_there, ranks)) or not is_free(tmp_path / "out"):
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.1)
        assert "error: The launcher of this process (torchrun) has ended" in log.read_text()


def test_a_rank_that_stops_is_named(tmp_path):
    with two_ranks(tmp_path / "out", "\nepoch [", KDPL_RANK_TIMEOUT="6") as (_, ranks, log):
        os.kill(ranks[1], signal.SIGSTOP)
        deadline = time.monotonic() + 60
        while "has not answered" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()[-2000:]
            time.sleep(0.2)
        assert f"process {ranks[1]}) has not answered for 6 s: it is stopped or hangs" in log.read_text()


def test_the_threads_that_watch_end_before_python_does():
    code = """
import atexit, threading
atexit.register(lambda: print([thread.name for thread in threading.enumerate()]))  # runs last
from kdpl.common.distributed import watch
watch.in_thread(watch.parent)
assert len(threading.enumerate()) == 2
"""
    process = processes.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (process.stdout, process.returncode) == ("['MainThread']\n", 0), process.stderr
