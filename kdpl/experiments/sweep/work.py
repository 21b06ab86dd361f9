"""Do a run: its steps as processes, how they ended, stopping on request; the record of it and the states of all."""

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from tabulate import tabulate

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


# -------------------------------------------------------------------------------------------------------- the states of runs


STATES = ("finished", "running", "failed", "stale", "waiting")


@dataclass(frozen=True)
class State:
    """One of `STATES`, a note on it, and whether it will change without anybody starting the sweep again."""

    name: str
    note: str = ""
    active: bool = False


def show(sweep: Sweep, runs: Sequence[Run]) -> int:
    """Print the state of every run; return the exit status, 1 if a run has failed or is stale."""
    now = states(sweep, runs)
    print(tabulate([(run.label, s.name, s.note) for run, s in zip(runs, now, strict=True)], tablefmt="plain"))
    names = [s.name for s in now]
    print("", ", ".join(f"{names.count(name)} {name}" for name in STATES if name in names), sep="\n")
    return exits.FAILED if {"failed", "stale"} & {*names} else 0


def states(sweep: Sweep, runs: Sequence[Run]) -> list[State]:
    """Return the state of each run; Slurm is asked only if there are jobs."""
    records = [read_record(sweep, run) for run in runs]
    queue = slurm_queue() if any(record.get("job") for record in records) else {}
    return [_state(sweep, run, record, queue) for run, record in zip(runs, records, strict=True)]


def _state(sweep: Sweep, run: Run, record: Mapping[str, Any], queue: Mapping[str, str] | None) -> State:
    """Return the state of a run, from its record and the states of all Slurm jobs; None: Slurm does not answer."""
    changes, job, state = run.stale(), record.get("job"), record.get("state")
    if not changes and run.done():
        return State("finished")
    if job and queue is None and state not in ("finished", "failed"):
        return State("waiting", f"job {job}; Slurm does not answer", active=True)
    if job and queue and job in queue:
        name = "running" if queue[job] in ("RUNNING", "COMPLETING", "STAGE_OUT") else "waiting"
        return State(name, f"job {job}, {queue[job]}", active=True)
    if changes:
        return State("stale", f"made with other settings: {'; '.join(changes)}")
    if state == "running" and not job and _lives(record):
        return State("running", f"process {record['pid']} on {record['host']}", active=True)
    lost = f"job {job} ended without a record of why: killed, or out of memory; see {sweep.folder / 'jobs'}"
    reason = (lost if job else "it was killed") if state == "running" else record.get("reason", "")
    return State("failed" if state == "failed" or (state == "running" and job) else "waiting", reason)


def _lives(record: Mapping[str, Any]) -> bool:
    """Return whether the process of a record is one of this machine that has not ended."""
    with suppress(ProcessLookupError):
        if record["host"] == socket.gethostname():
            with suppress(PermissionError):
                os.kill(record["pid"], 0)
            return True
    return False


def slurm_queue() -> dict[str, str] | None:
    """Return the state of all jobs of this user that wait or run; None: Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split()[:2] for line in answer.splitlines() if line.strip())
