"""Do a run: its steps as processes, how they ended, stopping on request, and the record of it."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kdpl.common import exits
from kdpl.common.command import SIGNALS
from kdpl.common.files import atomic_write
from kdpl.common.outputs import TRAINING, OutputError, take_folder
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.experiments.sweep.runs import Run, Step, Sweep

OCCUPIED_S = 60  # how long to wait for a folder that another process uses: after a requeue the old one may linger
RETRY_S = 5


class Stop:
    """A request to stop, by a signal to this process."""

    def __init__(self):
        self.signal: int | None = None
        self.again = False  # Ctrl-C for the second time

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """Note a signal; this is a signal handler."""
        if self.signal is None:
            print("Stopping: runs save what they have; the same command resumes them.", flush=True)
        self.again = number == signal.SIGINT == self.signal  # Slurm may deliver a signal twice
        self.signal = number


@contextmanager
def stopping() -> Iterator[Stop]:
    """Take the signals of this process as requests to stop."""
    stop = Stop()
    previous = {number: signal.signal(number, stop.take) for number in SIGNALS}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class Outcome:
    """How a run ended: an exit status of `kdpl.common.exits`, or 0, and why."""

    status: int = 0
    reason: str = ""

    @property
    def state(self) -> str:
        names = {0: "finished", exits.INTERRUPTED: "interrupted", exits.OCCUPIED: "occupied"}
        return names.get(self.status, "failed")


def exit_status(states: list[str]) -> int:
    """Return the exit status of a sweep whose runs ended in these states."""
    for state, status in (("failed", exits.FAILED), ("occupied", exits.OCCUPIED)):
        if state in states:
            return status
    return exits.INTERRUPTED if set(states) - {"finished"} else 0


def do(sweep: Sweep, run: Run, stop: Stop, env: Mapping[str, str], job: str = "") -> Outcome:
    """Do what is missing of a run, and record how it goes; `job` is the Slurm job that does it."""
    if stop.signal is None:
        write_record(sweep, run, "running", job=job)
    outcome = work(run, stop, env, sweep.executor.restarts)
    write_record(sweep, run, outcome.state, outcome.reason, job)
    return outcome


def work(run: Run, stop: Stop, env: Mapping[str, str], restarts: int = 0) -> Outcome:
    """Do what is missing of a run.

    A step that is interrupted, though this process was not asked to stop, is restarted, `restarts` times at most. If another
    process uses its folder, it is tried again for a while.
    """
    waits = 0
    for step in run.steps:
        while step.missing():
            if stop.signal is not None:
                return Outcome(exits.INTERRUPTED, "stopped before it was started")
            if step.training and (changes := step.training.stale()):
                why = f"its prompts were learned with other settings: give the same ({'; '.join(changes)})"
                return Outcome(exits.FAILED, why)
            if step.training and not step.training.ended():
                return Outcome(exits.FAILED, f"its training has not finished: do that step first ({step.model_dir})")
            outcome = _process(step, stop, env)
            if outcome.status == exits.OCCUPIED and waits < OCCUPIED_S / RETRY_S:
                waits += 1
                time.sleep(RETRY_S)
            elif outcome.status == exits.INTERRUPTED and not step.missing():
                break  # the signal came after its results
            elif outcome.status == exits.INTERRUPTED and restarts and stop.signal is None:
                restarts -= 1
            elif outcome.status:
                return outcome
            elif missing := step.missing():
                no_images = " Are there validation images?" if step.split.startswith("val") else ""
                return Outcome(exits.FAILED, f"it ended without a result on {', '.join(missing)} in {step.folder}.{no_images}")
    return Outcome()


def _process(step: Step, stop: Stop, env: Mapping[str, str]) -> Outcome:
    """Run a step to its end; its output is appended to console.txt in its folder."""
    path = step.folder / "console.txt"
    try:
        take_folder(step.folder, TRAINING)
        console = open(path, "a+b")  # noqa: SIM115  closed below
    except (OSError, OutputError) as error:
        return Outcome(exits.FAILED, str(error))
    with console:
        begin = console.seek(0, os.SEEK_END)
        # Its own session: Ctrl-C in the terminal is for the sweep, which then makes the step save and stop.
        process = subprocess.Popen(
            step.command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=dict(env), start_new_session=True
        )
        status, asked = None, False
        while status is None:
            if stop.again:
                process.kill()
            elif stop.signal is not None and not asked:
                asked = True
                # Slurm signals every process of a job, and a second signal of one kind would end the step before it has saved.
                process.send_signal(signal.SIGUSR1 if stop.signal == signal.SIGTERM else signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                status = process.wait(0.1)
        console.seek(begin)
        lines = [line.strip() for line in console.read().decode(errors="replace").splitlines() if line.strip()]
    if not status:
        return Outcome()
    reason = f"it was killed by {signal.Signals(-status).name}" if status < 0 else (lines or [f"exit status {status}"])[-1]
    if status < 0 and (-status in SIGNALS or stop.signal is not None):
        status = exits.INTERRUPTED  # before and after its training there is nothing to save
    return Outcome(status, f"{reason} (all of it: {path})")


def environment(threads: int, gpu: str | None = None) -> dict[str, str]:
    """Return the environment of a run: that number of threads, unless the user has set it, and that GPU."""
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", **os.environ}
    return env if gpu is None else {**env, "CUDA_VISIBLE_DEVICES": gpu}


# ---------------------------------------------------------------------------------------------------------- the record


def record_file(sweep: Sweep, run: Run) -> Path:
    """Return the file that records how a run goes."""
    return sweep.folder / "runs" / f"{run.key}.json"


def write_record(sweep: Sweep, run: Run, state: str, reason: str = "", job: str = "") -> None:
    """Record how a run goes, with the Slurm job that does it, if any.

    Args:
        state: "submitted" or "running", or "finished", "failed", "interrupted" or "occupied" and why.
    """
    process = {"host": socket.gethostname(), "pid": os.getpid()}
    with atomic_write(record_file(sweep, run), "w") as file:
        json.dump({"run": run.label, "state": state, "reason": reason, "job": job, **process}, file, indent=2)


def read_record(sweep: Sweep, run: Run) -> dict[str, Any]:
    """Return what `write_record` wrote last, or nothing."""
    try:
        return read_json(record_file(sweep, run))
    except (OSError, UnsafeTextError):
        return {}
