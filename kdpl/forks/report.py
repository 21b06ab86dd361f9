"""What of KDPL works in a fork: its configuration, and one short run of each of two trainers, as lines to print."""

import ast
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
from kdpl.forks.edit import read_source

RESULT = "RESULT "
TIMEOUT = 600  # seconds of a trial
_PROBE = """
import json, sys
sys.argv = ["train.py"]
import train, kdpl, torch
from dassl.config import get_cfg_default
cfg = get_cfg_default()
train.extend_cfg(cfg)
print("RESULT " + json.dumps({"dassl": kdpl.dassl_in_use(), "kdpl": kdpl.__version__, "torch": torch.__version__,
    "mended": sorted(f"TRAINER.{n}.{k}" for n, node in cfg.TRAINER.items() if hasattr(node, "items")
                     for k, v in node.items() if v is None)}))
"""


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
    findings = [_configuration(fork)]
    if not findings[0].works:
        return findings
    with tempfile.TemporaryDirectory() as output:
        findings.append(_own_trainer(fork, output))
    listed = trial(fork)
    if "trainers" not in listed:
        return [*findings, Finding(False, f"trainers of the fork: {listed.get('error') or listed.get('refused')}")]
    names = listed["trainers"]
    findings.append(Finding(bool(names), f"trainers that can be distilled: {', '.join(f'KDPL_{n}' for n in names) or 'none'}"))
    if chosen := trainer or next((n for n in names if not _kdpl_has(n)), names[0] if names else ""):
        findings.append(_wrapped(chosen, trial(fork, "--trainer", chosen)))
    return findings


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


def _configuration(fork: Path) -> Finding:
    has_function = any(
        isinstance(node, ast.FunctionDef) and node.name == "extend_cfg" for node in ast.walk(ast.parse(_text(fork)))
    )
    if not has_function:
        return Finding(False, "train.py has no extend_cfg(cfg) to try: run it by hand")
    found = run_python(fork, "-c", _PROBE)
    if "error" in found:
        return Finding(False, f"import of train.py and extend_cfg(cfg): {found['error']}")
    mended = f"; of another type than KDPL's, mended: {', '.join(found['mended'])}" if found["mended"] else ""
    return Finding(
        True, f"configuration: kdpl {found['kdpl']}, PyTorch {found['torch']}, {found['dassl'].removeprefix('Dassl: ')}{mended}"
    )


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


def _wrapped(name: str, found: dict[str, Any]) -> Finding:
    if "refused" in found:
        return Finding(False, f"KDPL_{name}: refused. {found['refused']}")
    if "error" in found:
        return Finding(False, f"KDPL_{name}: {found['error']}")
    moved, steps = f"{found['moved']} of {found['learned']}", found["steps"]
    return Finding(found["moved"] > 0, f"KDPL_{name}: {steps} steps without labels, {moved} learned parameters moved")


def _kdpl_has(name: str) -> bool:
    from kdpl import students

    return name in students.__all__


def _text(fork: Path) -> str:
    return read_source(fork / "train.py").removeprefix("\ufeff")
