"""What has become of a sweep's runs: from their results, from records, and from Slurm."""

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from tabulate import tabulate

from kdpl.common import lock
from kdpl.experiments.sweep.plan import Run, Sweep
from kdpl.experiments.sweep.work import read_record

STATES = ("finished", "running", "failed", "waiting")


@dataclass(frozen=True)
class State:
    """One of `STATES`, what there is to say about it, and whether it will change without anybody's doing."""

    name: str
    note: str = ""
    active: bool = False


def states_of(
    sweep: Sweep, runs: list[Run], jobs: Mapping[str, str] | None = None, queue: Mapping[str, str] | None = None
) -> list[State]:
    """Return the state of each run.

    Args:
        jobs: the Slurm job of a run, by its label.
        queue: the state of every Slurm job that waits or runs; None: Slurm does not answer.
    """
    return [_state(sweep, run, (jobs or {}).get(run.label, ""), queue) for run in runs]


def _state(sweep: Sweep, run: Run, job: str, queue: Mapping[str, str] | None) -> State:
    if run.done():
        return State("finished")
    record = read_record(sweep, run)
    if job and queue is None and record.get("state") != "failed":
        return State("waiting", f"job {job}; Slurm does not answer", active=True)
    if job and queue and job in queue:
        running = queue[job] in ("RUNNING", "COMPLETING", "STAGE_OUT")
        return State("running" if running else "waiting", f"job {job}, {queue[job]}", active=True)
    return _ended(sweep, record, job) or _here(run, record) or State("waiting", _why(record))


def _ended(sweep: Sweep, record: dict, job: str) -> State | None:
    """The state of a run that has failed, by its record or because its job is gone and has left none."""
    if record.get("state") == "failed":
        return State("failed", record["reason"])
    if record.get("state") == "running" and record.get("job") and record["job"] == job:
        return State("failed", f"job {job} ended without a word: killed, or out of memory; see {sweep.folder / 'jobs'}")
    return None


def _here(run: Run, record: dict) -> State | None:
    """The state of a run that a process of this machine is at work on, of this sweep or of another."""
    holders = [record] if record.get("state") == "running" else []
    for holder in holders + [lock.holder(step.folder) for step in run.steps]:
        if holder.get("host") == socket.gethostname() and lock.lives(holder):
            return State("running", f"process {holder['pid']} on {holder['host']}", active=True)
    return None


def _why(record: dict) -> str:
    """Why a run that was begun waits for the command to be given again."""
    return {"running": "it was killed"}.get(record.get("state", ""), record.get("reason", ""))


def table(runs: list[Run], states: list[State]) -> str:
    """Return the states as text: a line for each run, and a count."""
    rows = [(run.label, state.name, state.note) for run, state in zip(runs, states, strict=True)]
    names = [state.name for state in states]
    count = ", ".join(f"{names.count(name)} {name}" for name in STATES if name in names)
    return f"{tabulate(rows, tablefmt='plain')}\n\n{count}"
