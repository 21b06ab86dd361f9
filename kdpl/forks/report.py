"""What of KDPL works in a fork: its configuration, and one short run of each of two trainers, as lines to print."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpl.common.environment import PACKAGE
from kdpl.config.command_line import CONFIGS

RESULT = "RESULT "
TIMEOUT = 600  # seconds of a trial


@dataclass(frozen=True)
class Finding:
    """One thing that was tried.

    Attributes:
        works: whether it does.
        line: what was tried and what came of it.
    """

    works: bool
    line: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.works else 'FAIL'} {self.line}"


def try_fork(fork: Path, trainer: str = "") -> list[Finding]:
    """Run what the documentation promises in a fork whose `train.py` has the three changes.

    Args:
        fork: its folder.
        trainer: which of its trainers to wrap; empty: the first that KDPL has no own version of, else the first.
    """
    found = trial(fork, "--trainer", trainer or "first")
    if "mended" not in found:
        return [Finding(False, f"import of train.py and extend_cfg(cfg): {found.get('error', 'no result')}")]
    mended = f"; of another type than KDPL's, mended: {', '.join(found['mended'])}" if found["mended"] else ""
    where = f"kdpl {found['kdpl']}, PyTorch {found['torch']}, {found['dassl'].removeprefix('Dassl: ')}"
    names = ", ".join(f"KDPL_{name}" for name in found["trainers"])
    with tempfile.TemporaryDirectory() as output:
        findings = [Finding(True, f"configuration: {where}{mended}"), _own_trainer(fork, output)]
    findings.append(Finding(bool(names), f"trainers that can be distilled: {names or 'none'}"))
    return [*findings, _wrapped(found)] if "trainer" in found else findings


def trial(fork: Path, *args: str) -> dict[str, Any]:
    """Run `python -m kdpl.forks.trial` in a fork's folder, and return its result."""
    return run_python(fork, "-m", "kdpl.forks.trial", *args)


def run_python(fork: Path, *args: str) -> dict[str, Any]:
    """Run Python in a fork's folder with the KDPL of this process; return the JSON behind RESULT, or {"error": ...}."""
    path = os.pathsep.join(p for p in (os.environ.get("PYTHONPATH", ""), str(PACKAGE.parent)) if p)
    try:
        process = subprocess.run(
            [sys.executable, *args],
            cwd=fork,
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {TIMEOUT} s"}
    result = next((line for line in reversed(process.stdout.splitlines()) if line.startswith(RESULT)), None)
    if result is not None:
        return json.loads(result.removeprefix(RESULT))
    last = [line for line in process.stderr.splitlines() if line.strip()]
    if process.returncode == 0:
        return {"output": process.stdout}
    return {"error": last[-1] if last else f"exit status {process.returncode}"}


def _own_trainer(fork: Path, output: str) -> Finding:
    """Run the fork's own `train.py` with KDPL_CoOp and KDPL's configuration files."""
    command = ["train.py", "--trainer", "KDPL_CoOp", "--seed", "1", "--output-dir", output]
    command += ["--config-file", f"{CONFIGS}/trainers/KDPL_CoOp/emoji.yaml"]
    command += ["--dataset-config-file", f"{CONFIGS}/datasets/emoji_food.yaml"]
    command += ["DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True"]
    found = run_python(fork, *command)
    prompts = Path(output, "prompts.safetensors").is_file()
    if prompts:
        return Finding(True, "python train.py --trainer KDPL_CoOp: trained, prompts written")
    return Finding(False, f"python train.py --trainer KDPL_CoOp: {found.get('error', 'no prompts were written')}")


def _wrapped(found: dict[str, Any]) -> Finding:
    name = f"KDPL_{found['trainer']}"
    if "moved" not in found:
        return Finding(False, f"{name}: refused. {found['refused']}" if "refused" in found else f"{name}: {found.get('error')}")
    moved = f"{found['moved']} of {found['learned']} learned parameters moved"
    return Finding(found["moved"] > 0, f"{name}: {found['steps']} steps without labels, {moved}")
