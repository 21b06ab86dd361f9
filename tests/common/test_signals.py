"""Signals and processes: what a terminal, a scheduler or the system does to a run costs nothing, and ends in one plain line."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support import ROOT, emoji_args, processes
from torch.utils.data import DataLoader

from kdpl.common import command, exits
from kdpl.common.files import atomic_write, remove_parts
from kdpl.training import batches

RUN = (
    *("DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 300, "TRAIN.PRINT_FREQ", 4),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", 8),
)
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")


def start(output, *options, until="\nepoch ["):
    """Start a training in its own process group and return it once `until` was printed, with its log."""
    log = output.parent / f"{output.name}.log"
    command = [sys.executable, "-u", str(ROOT / "train.py"), *map(str, (*emoji_args("KDPL_CoOp", output), *RUN, *options))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        process = processes.Popen(command, stdout=file, stderr=file, env=environment, start_new_session=True)
    while until not in log.read_text():
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.02)
    return process, log


@pytest.mark.slow
@pytest.mark.parametrize("again", SIGNALS)
def test_a_second_signal_within_a_second_still_ends_in_75(again, tmp_path):
    """Of the same or another kind, at any moment until the process has ended."""
    numbers = random.Random(again)
    output, first = tmp_path / "run", numbers.choice(SIGNALS)
    process, log = start(output, "DATALOADER.NUM_WORKERS", 1)
    os.killpg(process.pid, getattr(signal, first))
    end = time.monotonic() + 0.9
    while process.poll() is None and time.monotonic() < end:
        os.killpg(process.pid, getattr(signal, again))
        time.sleep(0.01)
    assert process.wait(60) == exits.INTERRUPTED, log.read_text()[-2000:]
    assert "after saving: the same command resumes the run" in log.read_text() and "Traceback" not in log.read_text()
    assert list(output.rglob("resume.pth.tar"))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="looks for handlers in /proc")
@pytest.mark.parametrize(("name", "seconds"), [("SIGINT", 0), ("SIGTERM", 0.7), ("SIGHUP", 2), ("SIGUSR1", 4), ("SIGINT", 8)])
def test_a_command_is_stopped_at_any_moment_in_one_line(name, seconds, tmp_path):
    """From the moment on in which it handles signals: while it imports, reads, loads and computes."""
    number, output = getattr(signal, name), tmp_path / "log"
    with output.open("w") as log:
        command = [sys.executable, "-m", "kdpl", "fit", "--demo", "-o", str(tmp_path / "demo")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    status, caught = Path(f"/proc/{process.pid}/status"), 0
    while not caught >> (signal.SIGTERM - 1) & 1:
        caught = int(status.read_text().split("SigCgt:")[1].split()[0], 16)
    time.sleep(seconds)
    process.send_signal(number)
    assert process.wait(60) == exits.INTERRUPTED, output.read_text()
    assert output.read_text().strip().splitlines()[-1].startswith(f"Stopped by {name}")
    assert "Traceback" not in output.read_text()


def test_only_unfinished_files_of_ours_directly_in_a_folder_are_removed(tmp_path):
    (tmp_path / "other_run").mkdir()
    parts = [tmp_path / ".results.json.abc.kdpl-part"]
    others = [
        tmp_path / name for name in ("results.json", ".firefox.part", "o.csv.kdpl-part", "other_run/.x.json.abc.kdpl-part")
    ]
    for path in (*parts, *others):
        path.touch()
    others.append(tmp_path / ".link.kdpl-part")
    others[-1].symlink_to(tmp_path / "results.json")
    remove_parts(tmp_path, tmp_path / "missing")
    assert not parts[0].exists() and all(p.exists() for p in others)
    with pytest.raises(KeyError), atomic_write(tmp_path / "x.json") as file:
        (unfinished,) = tmp_path.glob(".x.json.*")
        assert unfinished.name.endswith(".kdpl-part"), "what is written now is known by the name"
        raise KeyError(file)
    assert not unfinished.exists()


def test_a_signal_in_the_first_moments_of_a_worker_does_not_end_it(monkeypatch):
    """A process group gets it, and PyTorch gives a new worker the usual effect of SIGTERM before any code of the run's."""

    def begin(worker_id):
        os.kill(os.getpid(), signal.SIGTERM)
        command.leave_signals_to_the_parent(worker_id)

    monkeypatch.setattr(batches, "leave_signals_to_the_parent", begin)
    images = [torch.tensor(float(n)) for n in range(3)]
    with batches.loaded(images, [[0], [1, 2]], DataLoader(images, num_workers=1)) as loaded:
        assert [part.tolist() for part in loaded] == [[0.0], [1.0, 2.0]]
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, []) & set(command.SIGNALS)
