"""The end of a sweep: the report of its runs, and the list of those that failed."""

import sys
from collections.abc import Mapping, Sequence

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import Lines, print
from kdpl.experiments.report.formats import render
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import all_tables
from kdpl.experiments.sweep.runs import Run, Sweep


def stale_runs(runs: Sequence[Run]) -> dict[str, str]:
    """Return the runs whose results were made with other settings, by their labels, and in what these differ."""
    return {run.label: "; ".join(found) for run in runs if (found := run.stale())}


def finish(
    sweep: Sweep, runs: Sequence[Run], summary: str, failed: Mapping[str, str], stale: Mapping[str, str] | None = None
) -> None:
    """Print the report, the summary, and which runs failed and why, or were made with other settings, by their labels."""
    report = write_report(sweep, runs)
    if report:
        print("", report, f"The report is in {sweep.folder}", sep="\n")
    print(f"{summary}; results are in {sweep.output}")
    if stale:
        print("Made with other settings, so neither counted nor reported (--redo does them again, and moves these aside):")
        for label, found in stale.items():
            print(f"  {label}: {found}")
    if failed:
        print("Failed (the same command tries these again):")
        for label, reason in failed.items():
            print(f"  {label}: {reason}")


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
