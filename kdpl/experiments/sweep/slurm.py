"""A sweep on a Slurm cluster: one job array through submitit, each of its jobs does one run."""

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from kdpl.common import exits
from kdpl.common.environment import PACKAGE
from kdpl.common.files import atomic_write
from kdpl.common.messages import short_reason
from kdpl.common.signals import SIGNALS
from kdpl.experiments.sweep.plan import Run, Sweep, SweepError, runs_of
from kdpl.experiments.sweep.status import State, states_of
from kdpl.experiments.sweep.work import Outcome, Stop, environment, state_of, work, write_record, write_report

WARNING_S = 120  # how long before the end of its time a job is told to save


class RunFailedError(RuntimeError):
    """A run ended without its results; Slurm shows its job as failed."""


def check() -> None:
    """Refuse to go on where submitit or Slurm is missing.

    Raises:
        SweepError: one is.
    """
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError:
        raise SweepError(
            f"--executor slurm needs submitit, which is not installed for {sys.executable}: pip install 'kdpl[sweep]'. "
            "--executor local needs nothing."
        ) from None
    try:
        subprocess.run(["sbatch", "--version"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SweepError(
            f"--executor slurm found no 'sbatch' ({short_reason(error)}): log in where Slurm is, or use local."
        ) from None


def parameters(sweep: Sweep) -> dict[str, Any]:
    """Return what submitit shall ask of Slurm, under its names."""
    asked = sweep.executor
    warning = min(WARNING_S, asked.time * 60 // 4)
    given = {
        "job_name": f"kdpl-{sweep.name}",
        "time": asked.time,
        "cpus_per_task": asked.cpus,
        "gpus_per_node": asked.gpus or None,
        "mem": asked.memory or None,
        "partition": asked.partition or None,
        "account": asked.account or None,
        "qos": asked.qos or None,
        "constraint": asked.constraint or None,
        "array_parallelism": asked.max_parallel,
        # Slurm's warning goes to every process of the job: it has to be one that the training knows, too.
        "additional_parameters": {"requeue": True, "signal": f"USR1@{warning}"},
        "setup": [*asked.setup, "export SUBMITIT_PREEMPT_SIGNAL=USR1", *_import_path()],
        "stderr_to_stdout": True,
        "srun_args": [f"--cpus-per-task={asked.cpus}"],  # since 22.05 srun does not take it from sbatch
    }
    return {key: value for key, value in given.items() if value is not None}


def _import_path() -> list[str]:
    """A job starts anywhere: a checkout that is not installed has to be found."""
    checkout = PACKAGE.parent
    if not (checkout / "setup.py").is_file():
        return []
    return [f"export PYTHONPATH={shlex.quote(str(checkout))}${{PYTHONPATH:+:$PYTHONPATH}}"]


def temporary_paths(sweep: Sweep) -> list[str]:
    """Return what a job needs, but may not find: paths on disks that other machines seldom have."""
    folders = {Path(folder).resolve() for folder in (tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", "/run")}
    needed = {"output": sweep.output, "Python": sys.executable, "kdpl": PACKAGE, "data": sweep.data}
    return [
        f"{name} '{path}'"
        for name, path in needed.items()
        if path and folders & set(Path(os.path.abspath(path)).parents) | folders & set(Path(path).resolve().parents)
    ]


def submit(sweep: Sweep, runs: list[Run]) -> dict[str, str]:
    """Submit the runs as one job array; return the job of each, by its label.

    Raises:
        SweepError: Slurm does not take them.
    """
    import submitit

    (sweep.folder / "jobs").mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(sweep.folder / "jobs", max_num_timeout=sweep.executor.restarts)
    executor.update_parameters(**parameters(sweep))
    try:
        with executor.batch():
            submitted = [executor.submit(Job(sweep, run.label)) for run in runs]
    except (submitit.core.utils.FailedJobError, OSError, subprocess.SubprocessError) as error:
        raise SweepError(f"Slurm did not take the jobs: {str(error).strip()}. Change the file's 'executor'.") from error
    jobs = {run.label: job.job_id for run, job in zip(runs, submitted, strict=True)}
    with atomic_write(sweep.folder / "jobs.json", "w") as file:
        json.dump({**read_jobs(sweep), **jobs}, file, indent=2)
    return jobs


def read_jobs(sweep: Sweep) -> dict[str, str]:
    """Return the job that each run was submitted as last, by the run's label."""
    try:
        return json.loads((sweep.folder / "jobs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def queue() -> dict[str, str] | None:
    """Return the state of all jobs of this user that wait or run; None: Slurm does not answer."""
    command = ["squeue", "--noheader", "--array", "--me", "--format=%i %T"]
    try:
        answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return dict(line.split()[:2] for line in answer.splitlines() if line.strip())


def states(sweep: Sweep, runs: list[Run]) -> list[State]:
    """Return the state of each run; Slurm is asked only if there are jobs."""
    jobs = read_jobs(sweep)
    return states_of(sweep, runs, jobs, queue() if jobs else {})


def wait(sweep: Sweep, runs: list[Run]) -> None:
    """Wait until no run of the sweep waits or runs any more, and say when one ends."""
    last: Mapping[str, str] = {}
    pause = 1.0
    while True:
        now = states(sweep, runs)
        names = {run.label: state.name for run, state in zip(runs, now, strict=True)}
        for run, state in zip(runs, now, strict=True):
            if last and names[run.label] != last[run.label]:
                print(f"{run.label}: {state.name} {state.note}".rstrip(), flush=True)
        if not any(state.active for state in now):
            return
        last = names
        time.sleep(pause)
        pause = min(30, 1.2 * pause)


class Job:
    """What a job of the array does: one run of a sweep.

    submitit pickles it, calls it on the node, and puts it back into the queue when it is asked to. Signals are taken here: the
    training saves and ends first, and only then is the job put back.
    """

    def __init__(self, sweep: Sweep, label: str):
        self.sweep = sweep
        self.label = label

    def __call__(self) -> str:
        import submitit

        stop = Stop()
        # submitit has set its own handlers just before: its requeue is called below, out of no signal handler.
        handlers = {number: signal.signal(number, stop.take) for number in SIGNALS}
        environ = submitit.JobEnvironment()
        runs = runs_of(self.sweep)
        (run,) = (r for r in runs if r.label == self.label)
        write_record(self.sweep, run, "running", job=environ.job_id)
        env = environment(int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
        outcome = work(run, stop, env, self.sweep.executor.restarts)
        write_record(self.sweep, run, state_of(outcome), outcome.reason, environ.job_id)
        if outcome.status == exits.INTERRUPTED and stop.signal is not None:
            self._put_back(run, stop.signal, environ, handlers[signal.SIGUSR1])
        if outcome.status:
            raise RunFailedError(f"{self.label}: {outcome.reason}")
        if all(r.done() for r in runs):  # the last one
            write_report(self.sweep, runs)
        return self.label

    def checkpoint(self) -> Any:
        """Return what the job does when it is started again: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _put_back(self, run: Run, number: int, environ: Any, requeue: Callable) -> None:
        """Have submitit put the job back into the queue, unless Slurm has its own plans with it."""
        from submitit.core.utils import UncompletedJobError

        # SIGTERM comes as a preemption's early warning, and then the job still runs; or because it was cancelled or put back.
        if number == signal.SIGTERM and (queue() or {}).get(environ.job_id) != "RUNNING":
            sys.exit(exits.INTERRUPTED)
        try:
            requeue(signal.SIGUSR1)
        except UncompletedJobError as error:
            outcome = Outcome(exits.FAILED, f"{error} It was out of time {self.sweep.executor.restarts + 1} times.")
            write_record(self.sweep, run, state_of(outcome), outcome.reason, environ.job_id)
            raise
