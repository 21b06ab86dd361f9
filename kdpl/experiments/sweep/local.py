"""A sweep on this machine, several runs at once, and the end of any: its report, and the list of runs that failed."""

import os
import queue
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from typing import Any

from kdpl.common.files import atomic_write
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import all_tables
from kdpl.experiments.sweep.runs import Run, Sweep, runs_of
from kdpl.experiments.sweep.work import Outcome, Stop, do, environment, exit_status, stopping


def dry_run(sweep: Sweep, parameters: Mapping[str, Any], redo: bool = False) -> None:
    """Print the commands of what is missing, below the parameters that Slurm would get."""
    for key, value in parameters.items():
        print(f"# {key}: {value}")
    todo, finished, stale = sorted_out(runs_of(sweep), redo)
    for label, found in stale.items():
        print(f"# {label}: made with other settings ({found}), see --redo")
    for run in todo:
        print(f"# {run.label}", *(shlex.join(step.command()) for step in run.steps if step.missing()), sep="\n")
    print(f"# {len(todo)} to do, {len(finished)} finished before")


def run_local(sweep: Sweep, jobs: int = 0, stopped: int = 0, redo: bool = False) -> int:
    """Do the runs that are not finished, then print the report and which failed; return the exit status.

    Args:
        jobs: runs at once; 0: the sweep's, else one for each GPU, else one. More than there are GPUs share them.
        stopped: the exit status after a request to stop; 0: that of how the runs ended.
        redo: do runs again whose results were made with other settings.
    """
    runs = runs_of(sweep)
    todo, finished, stale = sorted_out(runs, redo)
    for run in finished:
        print(f"skipped {run.label}: finished before", flush=True)
    with stopping() as stop:
        outcomes = _do_all(sweep, todo, stop, jobs or sweep.executor.jobs)
    ends = [outcome.state for outcome in outcomes.values()]
    counts = [f"{ends.count(name)} {name}" for name in ("occupied", "interrupted") if name in ends]
    summary = ", ".join([f"{len(todo)} tried", f"{ends.count('failed')} failed", *counts, f"{len(finished)} skipped"])
    failed = {label: outcome.reason for label, outcome in outcomes.items() if outcome.state == "failed"}
    finish(sweep, runs, summary, failed, stale)
    return stopped if stopped and stop.signal is not None else exit_status([*ends, *["failed" for _ in stale]])


def _do_all(sweep: Sweep, runs: Sequence[Run], stop: Stop, jobs: int) -> dict[str, Outcome]:
    """Do the runs, several at once; return how each ended, by its label."""
    devices = gpus() if sweep.executor.gpus and runs else []
    jobs = jobs or len(devices) or 1
    threads = max(1, (os.cpu_count() or 1) // jobs)
    if sweep.executor.warm:
        os.environ.update(environment(threads))  # PyTorch, imported once for all runs, reads these
    free: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for i in range(jobs):
        free.put(devices[i % len(devices)] if devices else None)

    def timed(run: Run) -> tuple[Outcome, float]:
        gpu, began = free.get(), time.monotonic()
        try:
            return do(sweep, run, stop, environment(threads, gpu)), time.monotonic() - began
        finally:
            free.put(gpu)

    outcomes, spent = {}, 0.0
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(timed, run): run.label for run in runs}
        for n, future in enumerate(as_completed(futures), 1):
            label, (outcome, seconds) = futures[future], future.result()
            outcomes[label] = outcome
            spent += seconds
            left = len(runs) - n if stop.signal is None else 0
            took, rest = (timedelta(seconds=round(s)) for s in (seconds, spent / n * left / min(left or 1, jobs)))
            rest = f", {left} left, about {rest}" if left else ""
            why = [f"    {outcome.reason}"] if outcome.status else []
            print(f"[{n}/{len(runs)}] {label}: {outcome.state} after {took}{rest}", *why, sep="\n", flush=True)
    return outcomes


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        return [name for name in visible.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


# ---------------------------------------------------------------------------------- the ending, on this machine or a cluster


def sorted_out(runs: Sequence[Run], redo: bool = False) -> tuple[list[Run], list[Run], dict[str, str]]:
    """Return the runs to do, the finished ones, and in what those differ, by label, that are of other settings, data or images.

    Args:
        redo: do these again.
    """
    stale = {run.label: "; ".join(run.stale()) for run in runs}
    stale = {label: found for label, found in stale.items() if found}
    finished = [run for run in runs if run.label not in stale and run.done()]
    left = {} if redo else stale
    return [run for run in runs if run not in finished and run.label not in left], finished, left


def finish(sweep: Sweep, runs: Sequence[Run], summary: str, failed: Mapping[str, str], stale: Mapping[str, str]) -> None:
    """Print the report, the summary, and which runs failed and why, or were made with other settings, by their labels."""
    report = write_report(sweep, runs)
    if report:
        print("", report, f"The report is in {sweep.folder}", sep="\n")
    print(f"{summary}; results are in {sweep.output}")
    for title, found in (
        ("Made with other settings, so neither counted nor reported (--redo does them again, and moves these aside):", stale),
        ("Failed (the same command tries these again):", failed),
    ):
        if found:
            print(title, *(f"  {label}: {why}" for label, why in found.items()), sep="\n")


def write_report(sweep: Sweep, runs: Sequence[Run]) -> str:
    """Write the tables of a sweep's runs as report.txt, .md and .csv into its folder, and return them as text."""
    steps = [part for run in runs for step in run.steps for part in (step.training or step, step) if not part.stale()]
    folders = [folder for folder in dict.fromkeys(s.folder for s in steps) if (folder / "results.json").is_file()]
    if not folders:
        return ""
    scores, notes = read_scores(folders, steps[0].split)
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    tables = all_tables(scores, list(sweep.seeds))
    for style, suffix in (("terminal", "txt"), ("markdown", "md"), ("csv", "csv")):
        with atomic_write(sweep.folder / f"report.{suffix}", "w") as file:
            file.write(render(tables, style))
    return render(tables, "terminal")
