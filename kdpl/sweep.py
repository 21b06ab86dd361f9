"""Many runs from one file, on this machine or on a Slurm cluster.

    python -m kdpl.sweep configs/sweeps/emoji.yaml
    python -m kdpl.sweep configs/sweeps/base2new.yaml --data DATA --executor slurm --wait
    python -m kdpl.sweep status configs/sweeps/base2new.yaml

Finished runs are skipped, interrupted ones go on where they were, and one that fails stops no other. So after anything at all:
the same command again. docs/sweeps.md has the keys of the file.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence

from kdpl.common import exits
from kdpl.experiments.sweep import slurm, status
from kdpl.experiments.sweep.local import run_local
from kdpl.experiments.sweep.plan import Run, Sweep, read_sweep, runs_of
from kdpl.experiments.sweep.work import read_record, status_of, write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    asks = argv[:1] == ["status"]
    parser = argparse.ArgumentParser(
        prog="python -m kdpl.sweep status" if asks else "python -m kdpl.sweep",
        description="Say of every run whether it is finished, running, failed or waiting." if asks else __doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="SWEEP.yaml", help="the sweep")
    parser.add_argument("--data", default="", help="folder of the data sets, in place of the file's")
    parser.add_argument("--output", default="", help="output folder, in place of the file's")
    if not asks:
        parser.add_argument("--executor", choices=("local", "slurm"), default="local", help="where to run (default: local)")
        parser.add_argument("--jobs", type=int, default=0, help="local: runs at once, in place of the file's")
        parser.add_argument("--wait", action="store_true", help="slurm: wait for the runs, then print the report")
        parser.add_argument("--dry-run", action="store_true", help="print the commands, and run none")
    args = parser.parse_args(argv[asks:])
    try:
        sweep = read_sweep(args.file, args.data, args.output)
        runs = runs_of(sweep)
        if asks:
            return ask(sweep, runs)
        todo = [run for run in runs if not run.done()]
        if args.dry_run:
            return dry_run(sweep, runs, todo, args.executor)
        if args.executor == "slurm":
            return on_slurm(sweep, runs, args.wait)
        return local(sweep, runs, todo, args.jobs or sweep.executor.jobs)
    except (ValueError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)


def ask(sweep: Sweep, runs: list[Run]) -> int:
    """Print the state of every run; the status is 1 if one has failed."""
    states = slurm.states(sweep, runs)
    print(status.table(runs, states))
    return exits.FAILED if any(state.name == "failed" for state in states) else 0


def dry_run(sweep: Sweep, runs: list[Run], todo: list[Run], executor: str) -> int:
    """Print what would be run."""
    if executor == "slurm":
        for key, value in slurm.parameters(sweep).items():
            print(f"# {key}: {value}")
    for run in todo:
        print(f"# {run.label}")
        for step in run.steps:
            if step.missing():
                print(shlex.join(step.command()))
    print(f"# {len(todo)} to do, {len(runs) - len(todo)} finished before")
    return 0


def local(sweep: Sweep, runs: list[Run], todo: list[Run], jobs: int) -> int:
    """Do the runs here, then print the report and what failed."""
    ended = run_local(sweep, todo, jobs)
    finish(sweep, runs)
    counts = [f"{ended.count(name)} {name}" for name in ("failed", "occupied", "interrupted") if name in ended]
    print(", ".join([f"{len(todo)} tried", *counts, f"{len(runs) - len(todo)} skipped"]) + f"; results are in {sweep.output}")
    return status_of(ended)


def on_slurm(sweep: Sweep, runs: list[Run], wait: bool) -> int:
    """Submit what is neither finished nor in the queue; then wait for it, if asked to, and print the report and what failed."""
    slurm.check()
    now = slurm.states(sweep, runs)
    todo = [run for run, state in zip(runs, now, strict=True) if state.name != "finished" and not state.active]
    for path in slurm.temporary_paths(sweep) if todo else []:
        print(f"Warning: {path} is on a disk of this machine: on other nodes the jobs will not find it.", file=sys.stderr)
    if todo:
        jobs = slurm.submit(sweep, todo)
        first = jobs[todo[0].label].partition("_")[0]
        print(f"Submitted {len(todo)} runs as job {first}; their logs are in {sweep.folder / 'jobs'}")
    print(
        f"{sum(state.active for state in now)} in the queue before, {[s.name for s in now].count('finished')} finished before"
    )
    if not wait:
        return 0
    slurm.wait(sweep, runs)
    finish(sweep, runs)
    ends = ["finished" if run.done() else read_record(sweep, run).get("state", "interrupted") for run in runs]
    return status_of(["failed" if s.name == "failed" else end for s, end in zip(slurm.states(sweep, runs), ends, strict=True)])


def finish(sweep: Sweep, runs: list[Run]) -> None:
    """Print the report of what there is, and which runs failed."""
    report = write_report(sweep, runs)
    if report:
        print(f"\n{report}\nThe report is in {sweep.folder}")
    failed = [(r, s) for r, s in zip(runs, slurm.states(sweep, runs), strict=True) if s.name == "failed"]
    if failed:
        print("Failed (the same command tries these again):")
        for run, state in failed:
            print(f"  {run.label}: {state.note}")


if __name__ == "__main__":
    sys.exit(main())
