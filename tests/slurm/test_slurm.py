"""A sweep on a real Slurm: `tests/slurm/setup.sh` starts one on this machine; without it these tests are skipped."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import ROOT
from support.files import EIGHT, sweep_file

from kdpl.common import exits
from kdpl.experiments.sweep import work
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import Run, runs_of

FOLDER = Path(os.environ.get("KDPL_SLURM", "/tmp/kdpl-slurm"))  # never the cluster that the machine may belong to
ON_SLURM = "{gpus: 0, cpus: 1, memory: 3G, time: 20}"


def answers() -> bool:
    if shutil.which("scontrol") is None or not (FOLDER / "slurm.conf").is_file():
        return False
    ping = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, env=environment(), check=False)
    return "is UP" in ping.stdout


def environment() -> dict[str, str]:
    return {**os.environ, "SLURM_CONF": str(FOLDER / "slurm.conf"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


pytestmark = pytest.mark.skipif(not answers(), reason="no Slurm of tests/slurm/setup.sh answers")


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    monkeypatch.setenv("SLURM_CONF", environment()["SLURM_CONF"])


def sweep(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "kdpl.sweep", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment())


def output_of(process: subprocess.Popen, code: int = 0) -> str:
    printed, _ = process.communicate(timeout=900)
    assert process.returncode == code, printed
    return printed


def wait_until(condition, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, subprocess.run(["squeue"], capture_output=True, text=True, check=False).stdout
        time.sleep(0.05)


def console(run: Run) -> str:
    file = run.steps[0].folder / "console.txt"
    return file.read_text() if file.is_file() else ""


def test_eight_jobs_one_of_them_preempted_end_in_the_complete_report(tmp_path):
    file = sweep_file(tmp_path, EIGHT, output=str(tmp_path / "out"), protocol="base2new", executor=ON_SLURM)
    plan = read_sweep(file)
    runs = runs_of(plan)
    preempted = runs[1]
    waiting = sweep(file, "--executor", "slurm", "--wait")
    wait_until(lambda: "epoch [1/1]" in console(preempted))
    job = work.read_record(plan, preempted)["job"]
    subprocess.run(["scancel", "--signal=USR1", f"{job}.0"], check=True)
    wait_until(lambda: " after saving: the same command" in console(preempted))

    again = output_of(sweep(file, "--executor", "slurm"))
    assert "Submitted" not in again, "jobs in the queue are not submitted again"
    assert "failed" not in output_of(sweep("status", file))

    printed = output_of(waiting)
    log = (plan.folder / "jobs" / f"{job}_0_log.out").read_text()
    assert f"Requeued job {job}" in log and "Resume from" in console(preempted)
    assert {state.name for state in work.states(plan, runs)} == {"finished"}
    report = (plan.folder / "report.txt").read_text()
    assert report.strip() in printed and "seeds)" not in report and "over seeds 1, 2" in report
    assert "Base-to-new" in report


def test_a_job_that_is_cancelled_stays_so_and_one_that_fails_is_named(tmp_path):
    file = sweep_file(tmp_path, EIGHT, output=str(tmp_path / "out"), trainers="[CoOp]", seeds="1", executor=ON_SLURM)
    plan = read_sweep(file)
    cancelled, failed = runs = runs_of(plan)
    broken = failed.steps[0].folder / "prompt_learner"
    broken.parent.mkdir(parents=True)
    broken.write_text("a file where a folder belongs")
    waiting = sweep(file, "--executor", "slurm", "--wait")
    wait_until(lambda: "epoch [1/1]" in console(cancelled))
    subprocess.run(["scancel", work.read_record(plan, cancelled)["job"]], check=True)
    printed = output_of(waiting, exits.FAILED)
    assert f"  {failed.label}: " in printed and f"(all of it: {failed.steps[0].folder}/console.txt)" in printed
    assert [state.name for state in work.states(plan, runs)] == ["waiting", "failed"]
    assert "Stopped by SIG" in console(cancelled) and work.read_record(plan, cancelled)["state"] == "interrupted"

    broken.unlink()
    output_of(sweep(file, "--executor", "slurm", "--wait"))
    assert "Resume from" in console(cancelled)
    assert work.states(plan, runs) == [work.State("finished")] * 2
