"""Processes of `train.py` that fork from a Python which has imported PyTorch already: a start costs no second."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from multiprocessing import resource_tracker
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from kdpl.common.signals import SIGNALS, starting_workers
from kdpl.experiments.sweep.runs import TRAIN

PRELOADED = [
    "torch",
    "torchvision",
    "clip",
    "open_clip",
    "dassl.engine",
    "kdpl.train",
    "kdpl.datasets",
    "kdpl.trainers.baselines",
]


class WarmProcess(ForkServerProcess):
    """A started run of `train.py`, with the methods of `subprocess.Popen` that a sweep needs.

    The server that it forks from starts with the first of them, with this process's environment. A signal to stop is for the
    runs, not for it: without the server no exit status reaches the sweep, which would take a finished run for a failed one.
    `timeout`, Slurm and a terminal that is closed signal all processes at once. Blocked signals wait for the run to begin.

    Args:
        command: of a step, `[python, *TRAIN, *arguments]`.
        console: the file that its output is appended to.
        env: variables to set; one that PyTorch reads when it is imported must have the same value in this process.
    """

    def __init__(self, command: Sequence[str], console: Path, env: Mapping[str, str]):
        super().__init__(target=_run, args=(command[1 + len(TRAIN) :], str(console), dict(env)))
        multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
        resource_tracker.ensure_running()  # when it starts, it lets signals through
        with starting_workers():
            self.start()

    def wait(self, timeout: float) -> int:
        """Return the exit status, negative for a signal, or raise `subprocess.TimeoutExpired`."""
        self.join(timeout)
        if self.exitcode is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return self.exitcode

    def send_signal(self, number: int) -> None:
        if self.exitcode is None:
            os.kill(self.pid, number)


def _run(arguments: Sequence[str], console: str, env: dict[str, str]) -> None:
    os.setsid()  # Ctrl-C in the terminal is for the sweep
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked in the server
    os.environ.clear()
    os.environ.update(env)
    with open(console, "ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.argv = ["train.py", *arguments]
    runpy.run_module("kdpl.train", run_name="__main__", alter_sys=True)
