"""What a sweep has to do, and its end: the report of its runs, and the list of those that failed."""

import sys
from collections.abc import Mapping, Sequence

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import Lines, print
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import all_tables
from kdpl.experiments.sweep.runs import Run, Sweep


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


def write_report(sweep: Sweep, runs: Sequence[Run]) -> Lines:
    """Write the tables of a sweep's runs as report.txt, .md and .csv into its folder, and return them as text."""
    steps = [part for run in runs for step in run.steps for part in (step.training or step, step) if not part.stale()]
    folders = [folder for folder in dict.fromkeys(s.folder for s in steps) if (folder / "results.json").is_file()]
    if not folders:
        return Lines()
    scores, notes = read_scores(folders, steps[0].split)
    for note in notes:
        print(f"Note: {note}", file=sys.stderr)
    tables = all_tables(scores, list(sweep.seeds))
    for style, suffix in (("terminal", "txt"), ("markdown", "md"), ("csv", "csv")):
        with atomic_write(sweep.folder / f"report.{suffix}", "w") as file:
            file.write(render(tables, style))
    return render(tables, "terminal")
