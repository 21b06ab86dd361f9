"""Doing a run: its steps as processes, what became of them, and stopping on request."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from kdpl.common import exits, lock
from kdpl.common.files import atomic_write
from kdpl.common.signals import SIGNALS
from kdpl.experiments.sweep.plan import Run, Step, Sweep

OCCUPIED_S = 60  # how long a run is waited for that another process is at work on: after a requeue the old one may linger
RETRY_S = 5


class Stop:
    """A request to stop, by a signal to this process."""

    def __init__(self):
        self.signal: int | None = None
        self.again = False  # Ctrl-C for the second time

    def take(self, number: int, frame: FrameType | None = None) -> None:
        """Take note of a signal; this is a signal handler."""
        self.again = number == signal.SIGINT == self.signal  # Slurm may deliver a signal twice
        self.signal = number

    def wait(self, seconds: float) -> bool:
        """Sleep that long, or until it is asked to stop; return whether it is."""
        end = time.monotonic() + seconds
        while self.signal is None and time.monotonic() < end:
            time.sleep(min(0.1, seconds))
        return self.signal is not None


@dataclass(frozen=True)
class Outcome:
    """How a run ended: an exit status of `kdpl.common.exits`, or 0, and why."""

    status: int = 0
    reason: str = ""


def work(run: Run, stop: Stop, env: Mapping[str, str], restarts: int = 0) -> Outcome:
    """Do what is missing of a run.

    A step that is interrupted though nobody asked this process to stop is started again, `restarts` times at most; one that
    another process is at work on is waited for, for a while.
    """
    deadline = None
    for step in run.steps:
        while step.missing():
            if stop.signal is not None:
                return Outcome(exits.INTERRUPTED, "it was told to stop")
            outcome = _process(step, stop, env)
            if outcome.status == exits.OCCUPIED:
                deadline = deadline or time.monotonic() + OCCUPIED_S
                if time.monotonic() < deadline:
                    stop.wait(RETRY_S)
                    continue
            # The signal may have come to the step a moment before it comes to this process.
            if outcome.status == exits.INTERRUPTED and not stop.wait(0.5) and restarts > 0:
                restarts -= 1
                continue
            if outcome.status:
                return outcome
            if missing := step.missing():
                return Outcome(exits.FAILED, f"it ended well, but without a result on {', '.join(missing)} in {step.folder}")
    return Outcome()


def _process(step: Step, stop: Stop, env: Mapping[str, str]) -> Outcome:
    """Run a step to its end; what it prints is added to the console.txt of its folder."""
    try:
        step.folder.mkdir(parents=True, exist_ok=True)
        console = open(step.folder / "console.txt", "ab")  # noqa: SIM115  closed below
    except OSError as error:
        return Outcome(exits.FAILED, str(error))
    with console:
        begin = console.tell()
        # A session of its own: Ctrl-C in the terminal is for the sweep, which has the step save and stop.
        process = subprocess.Popen(
            step.command(), stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=dict(env), start_new_session=True
        )
        told = False
        while True:
            try:
                status = process.wait(0.1)
                break
            except subprocess.TimeoutExpired:
                pass
            if stop.again:
                process.kill()
            elif stop.signal is not None and not told:
                told = True
                # Slurm signals every process of a job, and a second signal of one kind would end the step before it has saved.
                process.send_signal(signal.SIGUSR1 if stop.signal == signal.SIGTERM else signal.SIGTERM)
    if not status:
        return Outcome()
    ends = f"it was killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
    if status < 0 and (-status in SIGNALS or stop.signal is not None):
        status = exits.INTERRUPTED  # before and after its training nothing needs to be saved
    return Outcome(status, f"{_last_line(step.folder / 'console.txt', begin) or ends} (all of it: {step.folder}/console.txt)")


def _last_line(file: Path, begin: int) -> str:
    with open(file, "rb") as console:
        console.seek(begin)
        lines = [line for line in console.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else ""


# ------------------------------------------------------------------------------------------------------------- records


def record_file(sweep: Sweep, run: Run) -> Path:
    """Return the file that says what became of a run."""
    return sweep.folder / "runs" / ("".join(c if c.isalnum() or c in "-_" else "_" for c in run.label) + ".json")


def write_record(sweep: Sweep, run: Run, state: str, reason: str = "", job: str = "") -> None:
    """Write down what became of a run: state "running", "finished", "failed", "interrupted" or "occupied"."""
    content = {"run": run.label, "state": state, "reason": reason, "job": job, **lock.this_process()}
    with atomic_write(record_file(sweep, run), "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_record(sweep: Sweep, run: Run) -> dict[str, Any]:
    """Return what `write_record` wrote last, or nothing."""
    try:
        content = json.loads(record_file(sweep, run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def state_of(outcome: Outcome) -> str:
    """Return the state of a run that ended so."""
    names = {0: "finished", exits.INTERRUPTED: "interrupted", exits.OCCUPIED: "occupied"}
    return names.get(outcome.status, "failed")


def status_of(states: list[str]) -> int:
    """Return the exit status of a sweep whose runs ended in these states."""
    for state, status in (("failed", exits.FAILED), ("occupied", exits.OCCUPIED), ("interrupted", exits.INTERRUPTED)):
        if state in states:
            return status
    return 0


# -------------------------------------------------------------------------------------------------------------- report


def write_report(sweep: Sweep, runs: list[Run]) -> str:
    """Write the tables of a sweep's runs as report.txt, .md and .csv into its folder, and return them as text."""
    from kdpl.experiments.report.formats import render
    from kdpl.experiments.report.runs import read_scores
    from kdpl.experiments.report.tables import all_tables

    folders = [step.folder for run in runs for step in run.steps if (step.folder / "results.json").is_file()]
    if not folders:
        return ""
    scores, notes = read_scores(folders)
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    tables = all_tables(scores, list(sweep.seeds))
    for style, suffix in (("terminal", "txt"), ("markdown", "md"), ("csv", "csv")):
        with atomic_write(sweep.folder / f"report.{suffix}", "w") as file:
            file.write(render(tables, style))
    return render(tables, "terminal")


def environment(threads: int, gpu: str | None = None) -> dict[str, str]:
    """Return the environment of a run: so many threads and that GPU, where the user has not said otherwise."""
    env = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", **os.environ}
    if gpu is not None:
        env["CUDA_VISIBLE_DEVICES"] = gpu
    return env
