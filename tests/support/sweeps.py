"""Sweeps in this process, whose steps are forked: a sweep whose own process is not tested need not import PyTorch for each."""

import subprocess
from types import SimpleNamespace

from kdpl.experiments.sweep import work
from support import processes


def fork_steps(monkeypatch) -> None:
    """Let the steps of sweeps in this process start as `processes.Popen`: processes of their own, in milliseconds."""
    monkeypatch.setattr(work, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": processes.Popen}))
