"""The state of a sweep's runs: from their results, from records, from locks and from Slurm."""

import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kdpl.common import exits, lock
from kdpl.common.files import atomic_write
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.experiments.sweep.runs import Run, Sweep, runs_of

STATES = ("finished", "running", "failed", "stale", "waiting")


@dataclass(frozen=True)
class State:
    """One of `STATES`, a note on it, and whether it will change without anybody starting the sweep again."""

    name: str
    note: str = ""
    active: bool = False


def show(sweep: Sweep) -> int:
    """Print the state of every run; return the exit status, 1 if a run has failed or is stale."""
    runs = runs_of(sweep)
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
    stale, job, state = run.stale(), record.get("job"), record.get("state")
    if not stale and run.done():
        return State("finished")
    if job and queue is None and state not in ("finished", "failed"):
        return State("waiting", f"job {job}; Slurm does not answer", active=True)
    if job and queue and job in queue:
        name = "running" if queue[job] in ("RUNNING", "COMPLETING", "STAGE_OUT") else "waiting"
        return State(name, f"job {job}, {queue[job]}", active=True)
    if stale:
        return State("stale", f"made with other settings: {'; '.join(stale)}")
    # A process of this machine may be at work on it, of this sweep or of another.
    for holder in [record] * (state == "running" and not job) + [lock.holder(step.folder) for step in run.steps]:
        if holder.get("host") == socket.gethostname() and lock.lives(holder):
            return State("running", f"process {holder['pid']} on {holder['host']}", active=True)
    lost = f"job {job} ended without a record of why: killed, or out of memory; see {sweep.folder / 'jobs'}"
    reason = (lost if job else "it was killed") if state == "running" else record.get("reason", "")
    return State("failed" if state == "failed" or (state == "running" and job) else "waiting", reason)


def slurm_queue() -> dict[str, str] | None:
    """Return the state of all jobs of this user that wait or run; None: Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split()[:2] for line in answer.splitlines() if line.strip())


def record_file(sweep: Sweep, run: Run) -> Path:
    """Return the file that records how a run goes."""
    return sweep.folder / "runs" / f"{run.key}.json"


def write_record(sweep: Sweep, run: Run, state: str, reason: str = "", job: str = "") -> None:
    """Record how a run goes, with the Slurm job that does it, if any.

    Args:
        state: "submitted" or "running", or "finished", "failed", "interrupted" or "occupied" and why.
    """
    content = {"run": run.label, "state": state, "reason": reason, "job": job, **lock.this_process()}
    with atomic_write(record_file(sweep, run), "w") as file:
        json.dump(content, file, indent=2)


def read_record(sweep: Sweep, run: Run) -> dict[str, Any]:
    """Return what `write_record` wrote last, or nothing."""
    try:
        content = read_json(record_file(sweep, run))
    except (OSError, UnsafeTextError):
        return {}
    return content if isinstance(content, dict) else {}
