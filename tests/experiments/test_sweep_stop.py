"""A sweep that a signal to all its processes stops reports each run as it ended."""

import os
import subprocess
import sys

from support import ROOT

CODE = """
import os, signal, subprocess, sys, time
from pathlib import Path
from kdpl.experiments.sweep import warm
from kdpl.experiments.sweep.runs import TRAIN
from multiprocessing import forkserver

if __name__ == "__main__":
    warm.PRELOADED = ["kdpl.common.exits"]
    console = Path(sys.argv[1])
    console.touch()
    process = warm.WarmProcess([sys.executable, *TRAIN, "--help"], console, os.environ)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGTERM)  # as `timeout`, a closed terminal and Slurm do
    while True:
        try:
            print(process.wait(0.1))
            break
        except subprocess.TimeoutExpired:
            pass
    process = warm.WarmProcess([sys.executable, *TRAIN, "--help"], console, os.environ)
    process.send_signal(signal.SIGTERM)  # before it has begun: it is not lost
    try:
        print(process.wait(60))
    except subprocess.TimeoutExpired:
        print("never")
"""


def test_a_signal_to_all_processes_takes_no_exit_status_from_a_run(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(CODE)
    command = [sys.executable, str(script), str(tmp_path / "console.txt")]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False, env=env)
    first, second = done.stdout.split()
    assert first == "0", done.stdout + done.stderr
    assert second in ("-15", "0"), "stopped, or at its end already"
