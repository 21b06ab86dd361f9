"""A sweep on a Slurm cluster: job arrays through submitit; each of their jobs does one run."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from kdpl.common import exits
from kdpl.common.command import SIGNALS
from kdpl.common.environment import PACKAGE
from kdpl.config.keys import ConfigError
from kdpl.experiments.sweep.many import run_sweep, sorted_out, write_report
from kdpl.experiments.sweep.runs import Run, Sweep, runs_of
from kdpl.experiments.sweep.work import Outcome, Stop, do, environment, read_record, slurm_queue, states, write_record

WARNING_S = 120  # how long before the end of its time a job is asked to save


def run_on_slurm(sweep: Sweep, wait: bool, redo: bool = False) -> int:
    """Submit what is neither finished nor in the queue; return the exit status.

    Args:
        wait: wait for all runs, then print the report and which failed.
        redo: submit runs again whose results were made with other settings.

    Raises:
        ConfigError: without submitit or Slurm, or for a search that is not waited for.
    """
    check()
    if wait:
        return run_sweep(sweep, submit_and_wait, redo)
    if sweep.search:
        raise ConfigError("The runs of a search depend on its trials: --executor slurm needs --wait for it.")
    runs = runs_of(sweep)
    todo, finished, stale = sorted_out(runs, redo)
    before = submit(sweep, todo)
    print(f"{before} in the queue before, {len(finished)} finished before")
    for label, changes in stale.items():
        print(f"{label} was made with other settings ({changes}): --redo does it again", file=sys.stderr)
    return exits.FAILED if stale else 0


def check() -> None:
    """Raise a ConfigError without submitit or Slurm."""
    try:
        import submitit  # noqa: F401
    except ModuleNotFoundError:
        raise ConfigError(
            f"--executor slurm needs submitit, which is not installed for {sys.executable}: pip install 'kdpl[sweep]'. "
            "--executor local needs nothing."
        ) from None
    if shutil.which("sbatch") is None:
        raise ConfigError("--executor slurm found no 'sbatch': log in where Slurm is, or use --executor local.")


def parameters(sweep: Sweep) -> dict[str, Any]:
    """Return the parameters of the job array, under submitit's names."""
    asked, checkout = sweep.executor, PACKAGE.parent
    warning = min(WARNING_S, asked.time * 60 // 4)
    setup = [*asked.setup, "export SUBMITIT_PREEMPT_SIGNAL=USR1"]
    if (checkout / "setup.py").is_file():  # a checkout need not be installed
        setup.append(f"export PYTHONPATH={shlex.quote(str(checkout))}${{PYTHONPATH:+:$PYTHONPATH}}")
    given = {
        "job_name": f"kdpl-{sweep.name}",
        "time": asked.time,
        "cpus_per_task": asked.cpus,
        "gpus_per_node": asked.gpus,
        "mem": asked.memory,
        "partition": asked.partition,
        "account": asked.account,
        "qos": asked.qos,
        "constraint": asked.constraint,
        "array_parallelism": asked.max_parallel,
        # Slurm's warning goes to every process of the job: the training has to know the signal, too.
        "additional_parameters": {"requeue": True, "signal": f"USR1@{warning}"},
        "setup": setup,
        "stderr_to_stdout": True,
        "srun_args": [f"--cpus-per-task={asked.cpus}"],  # since 22.05 srun does not take it from sbatch
    }
    return {key: value for key, value in given.items() if value}  # the rest is the cluster's


def submit(sweep: Sweep, runs: Sequence[Run]) -> int:
    """Submit the runs that are not in the queue as one job array; return how many are in it already.

    Raises:
        ConfigError: Slurm does not take them.
    """
    import submitit

    active = {run.label for run, state in zip(runs, states(sweep, runs), strict=True) if state.active}
    runs = [run for run in runs if run.label not in active]
    if not runs:
        return len(active)
    (sweep.folder / "jobs").mkdir(parents=True, exist_ok=True)
    executor = submitit.SlurmExecutor(sweep.folder / "jobs", max_num_timeout=sweep.executor.restarts)
    executor.update_parameters(**parameters(sweep))
    try:
        with executor.batch():
            jobs = [executor.submit(Job(sweep, run)) for run in runs]
    except (submitit.core.utils.FailedJobError, OSError, subprocess.SubprocessError) as error:
        raise ConfigError(f"Slurm did not take the jobs: {str(error).strip()}. Change the file's 'executor'.") from error
    for run, job in zip(runs, jobs, strict=True):
        if read_record(sweep, run).get("job") != job.job_id:  # it has not begun
            write_record(sweep, run, "submitted", job=job.job_id)
    number = jobs[0].job_id.partition("_")[0]
    print(f"Submitted {len(runs)} runs as job {number}; their logs are in {sweep.folder / 'jobs'}", flush=True)
    return len(active)


def submit_and_wait(sweep: Sweep, runs: Sequence[Run], stop: Stop) -> dict[str, Outcome]:
    """Submit runs and wait until none waits or runs any more, or for a signal; print each change, and return how they ended."""
    submit(sweep, runs)
    now, pause = states(sweep, runs), 1.0
    while any(state.active for state in now) and stop.signal is None:
        time.sleep(pause)
        last, now, pause = now, states(sweep, runs), min(30, 1.2 * pause)
        for run, state, before in zip(runs, now, last, strict=True):
            if state.name != before.name:
                print(f"{run.label}: {state.name} {state.note}".rstrip(), flush=True)
    ends = {"finished": 0, "failed": exits.FAILED, "stale": exits.FAILED}
    return {run.label: Outcome(ends.get(s.name, exits.INTERRUPTED), s.note) for run, s in zip(runs, now, strict=True)}


class Job:
    """One job of the array: one run of a sweep.

    submitit pickles it, calls it on the node, and puts it back into the queue when asked to. Signals are taken here: the
    training saves and ends first, and only then is the job put back.
    """

    def __init__(self, sweep: Sweep, run: Run):
        self.sweep = sweep
        self.run = run

    def __call__(self) -> str:
        import submitit

        stop = Stop()
        # submitit has set its own handlers just before: its requeue is called below, outside a signal handler.
        handlers = {number: signal.signal(number, stop.take) for number in SIGNALS}
        environ = submitit.JobEnvironment()
        env = environment(int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
        outcome = do(self.sweep, self.run, stop, env, environ.job_id)
        if outcome.status == exits.INTERRUPTED and stop.signal is not None:
            self._put_back(stop.signal, environ.job_id, handlers[signal.SIGUSR1])
        if outcome.status:
            raise RuntimeError(f"{self.run.label}: {outcome.reason}")  # Slurm shows its job as failed
        runs = [] if self.sweep.search else runs_of(self.sweep)
        if runs and all(run.done() for run in runs):  # this was the last one
            write_report(self.sweep, runs)
        return self.run.label

    def checkpoint(self) -> Any:
        """Return what the restarted job does: the same."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)

    def _put_back(self, number: int, job: str, requeue: Callable) -> None:
        """Make submitit put the job back into the queue, unless Slurm cancels or requeues it itself."""
        from submitit.core.utils import UncompletedJobError

        # SIGTERM is a preemption's early warning if the job still runs; else the job was cancelled or requeued.
        if number == signal.SIGTERM and (slurm_queue() or {}).get(job) != "RUNNING":
            sys.exit(exits.INTERRUPTED)
        try:
            requeue(signal.SIGUSR1)
        except UncompletedJobError as error:
            times = self.sweep.executor.restarts + 1
            write_record(self.sweep, self.run, "failed", f"{error} It ran out of time {times} times.", job)
            raise
