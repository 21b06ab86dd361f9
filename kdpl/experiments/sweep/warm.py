"""Processes of `train.py` that fork from a Python which has imported PyTorch already: a start costs no second."""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdpl.common.signals import SIGNALS
from kdpl.experiments.sweep.runs import TRAIN

PRELOADED = [
    "kdpl.experiments.sweep.server",
    "torch",
    "torchvision",
    "clip",
    "open_clip",
    "dassl.engine",
    "kdpl.train",
    "kdpl.datasets",
    "kdpl.trainers.baselines",
]


class WarmProcess:
    """A run of `train.py` as `subprocess.Popen` would start it, with the methods of it that a sweep needs.

    The server that it forks from starts with the first of them, with this process's environment.

    Args:
        command: of a step, `[python, *TRAIN, *arguments]`.
        console: the file that its output is appended to.
        env: variables to set; one that PyTorch reads when it is imported must have the same value in this process.
    """

    def __init__(self, command: Sequence[str], console: Path, env: Mapping[str, str]):
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        arguments = list(command[1 + len(TRAIN) :])
        self._process = context.Process(target=_run, args=(arguments, str(console), dict(env)))
        self._process.start()

    def wait(self, timeout: float) -> int:
        """Return the exit status, negative for a signal.

        Raises:
            subprocess.TimeoutExpired: it has not ended after `timeout` seconds.
        """
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("train.py", timeout)
        return self._process.exitcode

    def kill(self) -> None:
        self._process.kill()

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            os.kill(self._process.pid, number)


def _run(arguments: list[str], console: str, env: dict[str, str]) -> None:
    os.setsid()  # Ctrl-C in the terminal is for the sweep
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # blocked in the server
    os.environ.clear()
    os.environ.update(env)
    file = os.open(console, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    sys.argv = ["train.py", *arguments]
    runpy.run_module("kdpl.train", run_name="__main__", alter_sys=True)
