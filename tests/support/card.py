"""The simulated card (tests/simulated_card) for tests: whether this machine can have one, and processes with it."""

import os
import subprocess
import sys

import pytest
import torch
from simulated_card import SITE
from simulated_card.build import NoCompilerError, compiler

from support import ROOT, processes


def _missing() -> str:
    """Return why there can be no simulated card here; empty: there can."""
    if sys.platform != "linux":
        return "the simulated card is built on Linux"
    if torch.backends.cuda.is_built():
        return "this PyTorch is built for real cards"
    try:
        compiler()
    except NoCompilerError as error:
        return f"no simulated card: {error}"
    return ""


def run_on_card(*command: object) -> str:
    """Run Python with a simulated card and return what it printed, which is shown if it fails."""
    path = os.pathsep.join(filter(None, (str(SITE), os.environ.get("PYTHONPATH"))))
    env = {**os.environ, "PYTHONPATH": path, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    process = processes.run([sys.executable, *command], cwd=ROOT, env=env, text=True, timeout=600, **both)
    assert process.returncode == 0, process.stdout[-6000:]
    return process.stdout


def run_tests_on_card(file: str, names: str = "") -> None:
    """Run the tests of a file in tests/simulated_card, all of them or those that `-k` chooses by name."""
    out = run_on_card("-m", "pytest", "-p", "no:cacheprovider", f"tests/simulated_card/{file}", "-k", names)
    assert " passed" in out and "failed" not in out and "skipped" not in out, out


needs_simulated_card = pytest.mark.skipif(bool(_missing()), reason=_missing())
