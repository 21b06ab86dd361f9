"""A sweep from its search to its report: here, several runs at once, or by Slurm."""

import os
import queue
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta
from typing import Any

from kdpl.common.files import atomic_write
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import all_tables
from kdpl.experiments.sweep import search
from kdpl.experiments.sweep.runs import Run, Sweep, runs_of
from kdpl.experiments.sweep.work import Outcome, Stop, do, environment, exit_status, stopping

DoAll = Callable[[Sweep, Sequence[Run], Stop], dict[str, Outcome]]  # do runs; how each ended, by its label


def planned(sweep: Sweep) -> list[Run]:
    """Return the runs of a sweep as far as they are known: of a search that is not over, its trials too."""
    if not sweep.search:
        return runs_of(sweep)
    trials = search.read_trials(sweep)
    runs = [run for of_cell in trials.values() for trial in of_cell for run in trial.runs]
    best = search.best_of(sweep, trials)
    over = best and all(run.done() for run in runs)
    return runs + (runs_of(sweep, {cell: trial.options for cell, trial in best.items()}) if over else [])


def dry_run(sweep: Sweep, parameters: Mapping[str, Any], redo: bool = False) -> None:
    """Print the commands of what is missing, below the parameters that Slurm would get."""
    for key, value in parameters.items():
        print(f"# {key}: {value}")
    todo, finished, stale = sorted_out(planned(sweep), redo)
    for label, changes in stale.items():
        print(f"# {label}: made with other settings ({changes}), see --redo")
    for run in todo:
        print(f"# {run.label}", *(shlex.join(step.command()) for step in run.steps if step.missing()), sep="\n")
    later = "; a search comes first, and chooses the options of the runs" if sweep.search else ""
    print(f"# {len(todo)} to do, {len(finished)} finished before{later}")


def run_sweep(sweep: Sweep, do_all: DoAll, redo: bool = False) -> int:
    """Search if there is a search, do the runs that are not finished, print the report; return the exit status.

    Args:
        redo: do runs again whose results were made with other settings.
    """
    outcomes: dict[str, Outcome] = {}
    skipped: dict[str, Run] = {}
    changed: dict[str, str] = {}

    def do_missing(runs: Sequence[Run]) -> bool:
        todo, finished, stale = sorted_out([run for run in runs if run.label not in outcomes], redo)
        for run in finished:
            if run.label not in skipped:
                print(f"skipped {run.label}: finished before", flush=True)
        skipped.update({run.label: run for run in finished})
        changed.update(stale)
        outcomes.update(do_all(sweep, todo, stop))
        return stop.signal is not None

    with stopping() as stop:
        if sweep.search and search.choose(sweep, do_missing):
            runs = []
        else:
            best = search.best_of(sweep, search.read_trials(sweep)) if sweep.search else {}
            runs = runs_of(sweep, {cell: trial.options for cell, trial in best.items()})
            runs = [run for run in runs if not sweep.search or _cell_of(run) in best]
            do_missing(runs)
    states = [outcome.state for outcome in outcomes.values()]
    counts = [f"{states.count(name)} {name}" for name in ("occupied", "interrupted") if name in states]
    summary = ", ".join([f"{len(outcomes)} tried", f"{states.count('failed')} failed", *counts, f"{len(skipped)} skipped"])
    failed = {label: outcome.reason for label, outcome in outcomes.items() if outcome.state == "failed"}
    finish(sweep, runs, summary, failed, changed)
    if sweep.search and not runs:
        states.append("interrupted" if stop.signal is not None else "failed")
    return exit_status([*states, *["failed" for _ in changed]])


def _cell_of(run: Run) -> tuple[str, str, int]:
    training = run.steps[0].training or run.steps[0]
    return training.trainer, training.datasets[0], training.shots


def do_here(jobs: int = 0) -> DoAll:
    """Return what does runs on this machine, that many at once.

    Args:
        jobs: 0: the sweep's, else one for each GPU, else one. More than there are GPUs share them.
    """
    return lambda sweep, runs, stop: _do_here(sweep, runs, stop, jobs or sweep.executor.jobs)


def _do_here(sweep: Sweep, runs: Sequence[Run], stop: Stop, jobs: int) -> dict[str, Outcome]:
    devices = gpus() if sweep.executor.gpus and runs else []
    jobs = jobs or len(devices) or 1
    threads = max(1, (os.cpu_count() or 1) // jobs)
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


def sorted_out(runs: Sequence[Run], redo: bool = False) -> tuple[list[Run], list[Run], dict[str, str]]:
    """Return the runs to do, the finished ones, and in what those differ, by label, that are of other settings, data or images.

    Args:
        redo: do these again.
    """
    changes = {run.label: "; ".join(run.stale()) for run in runs}
    stale = {label: change for label, change in changes.items() if change}
    finished = [run for run in runs if run.label not in stale and run.done()]
    left = {} if redo else stale
    return [run for run in runs if run not in finished and run.label not in left], finished, left


def finish(sweep: Sweep, runs: Sequence[Run], summary: str, failed: Mapping[str, str], stale: Mapping[str, str]) -> None:
    """Print the report, the summary, and which runs failed and why, or were made with other settings, by their labels."""
    report = write_report(sweep, runs)
    if report:
        print("", report, f"The report is in {sweep.folder}", sep="\n")
    print(f"{summary}; results are in {sweep.output}")
    for title, labelled in (
        ("Made with other settings, so neither counted nor reported (--redo does them again, and moves these aside):", stale),
        ("Failed (the same command tries these again):", failed),
    ):
        if labelled:
            print(title, *(f"  {label}: {why}" for label, why in labelled.items()), sep="\n")


def write_report(sweep: Sweep, runs: Sequence[Run]) -> str:
    """Write the tables of a sweep's runs and of its search into its folder, and return them as text."""
    text = search.write_choice(sweep) if sweep.search else ""
    steps = [part for run in runs for step in run.steps for part in (step.training or step, step) if not part.stale()]
    folders = [folder for folder in dict.fromkeys(s.folder for s in steps) if (folder / "results.json").is_file()]
    if not folders:
        return text
    scores, notes = read_scores(folders, steps[0].split)
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    tables = all_tables(scores, list(sweep.seeds))
    for style, suffix in (("terminal", "txt"), ("markdown", "md"), ("csv", "csv")):
        with atomic_write(sweep.folder / f"report.{suffix}", "w") as file:
            file.write(render(tables, style))
    return "\n".join(filter(None, [text, render(tables, "terminal")]))
