"""The state of a sweep's runs: from their results, their records and Slurm."""

import os
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from tabulate import tabulate

from kdpl.common import exits
from kdpl.experiments.sweep.runs import Run, Sweep
from kdpl.experiments.sweep.work import read_record

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
