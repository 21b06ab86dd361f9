"""What of KDPL works in a fork: its configuration, and one short run of each of two trainers, as lines to print."""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpl.common.environment import PACKAGE, dassl_in_use
from kdpl.config.choices import ALLOWED
from kdpl.config.command_line import CONFIGS
from kdpl.forks.faults import place, reason, way_out

RESULT = "RESULT "  # before what a trial prints
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
        trainer: which of its trainers to wrap; empty: all that KDPL has no own version of, or if there is none, the first.
    """
    found = trial(fork)
    if "mended" not in found:
        return [_failed("import of train.py and extend_cfg(cfg)", found)]
    mended = f"; of another type than KDPL's, mended: {', '.join(found['mended'])}" if found["mended"] else ""
    versions = f"kdpl {found['kdpl']}, PyTorch {found['torch']}, {dassl_in_use()}"
    versions += "" if found["dassl"] == "bundled" else f" (version {found['dassl']})"
    findings = [Finding(True, f"configuration: {versions}{mended}")]
    with tempfile.TemporaryDirectory() as output:
        findings.append(_own_trainer(fork, output))
    names, ours = found["trainers"], found["ours"]
    theirs = [name for name in names if name not in ours]
    kinds = {"the fork's, wrapped": theirs, "KDPL's own": ours}
    listed = "; ".join(f"{', '.join(f'KDPL_{n}' for n in some)} ({kind})" for kind, some in kinds.items() if some)
    findings.append(
        Finding(bool(names), f"--trainer takes: {listed or 'none of this fork, whose trainers cannot be distilled'}")
    )
    chosen = [trainer.removeprefix("KDPL_")] if trainer else theirs or names[:1]
    if trainer and chosen[0] not in names:
        return [*findings, Finding(False, f"--trainer {trainer}: expected one of {', '.join(names)}")]
    return [*findings, *(finding for name in chosen for finding in _tried(fork, name))]


def trial(fork: Path, *args: str) -> dict[str, Any]:
    """Run `python -m kdpl.forks.trial` in a fork's folder, and return its result."""
    return run_python(fork, "-m", "kdpl.forks.trial", *args)


def run_python(fork: Path, *args: str) -> dict[str, Any]:
    """Run Python in a fork's folder with the KDPL of this process.

    Returns:
        The JSON behind RESULT, or `error`, in both cases with `where` in the fork's code and the `way_out`; empty if neither.
    """
    folders = [*os.environ.get("PYTHONPATH", "").split(os.pathsep), PACKAGE.parent]
    path = os.pathsep.join(os.path.abspath(folder) for folder in folders if folder)  # the run is in another folder
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
    found = json.loads(result.removeprefix(RESULT)) if result else {}
    if result is None and process.returncode:
        found["error"] = reason(process.stderr, process.returncode)
    if error := found.get("error", found.get("refused", "")):
        found["where"] = place(process.stderr, fork)
        found["way_out"] = way_out(error, found["where"], fork, "bundled" in dassl_in_use())
    return found


def _own_trainer(fork: Path, output: str) -> Finding:
    """Run the fork's own `train.py` with KDPL_CoOp and KDPL's configuration files."""
    command = ["train.py", "--trainer", "KDPL_CoOp", "--seed", "1", "--output-dir", output]
    command += ["--config-file", f"{CONFIGS}/trainers/KDPL_CoOp/emoji.yaml"]
    command += ["--dataset-config-file", f"{CONFIGS}/datasets/emoji_meals.yaml"]
    command += ["DATASET.NUM_SHOTS", "1", "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", "1", "TEST.NO_TEST", "True"]
    found, what = run_python(fork, *command), "python train.py --trainer KDPL_CoOp"
    if Path(output, "prompts.safetensors").is_file():
        return Finding(True, f"{what}: trained, prompts written")
    return _failed(what, {"error": "no prompts were written", **found})


def _tried(fork: Path, name: str, *allow: str) -> list[Finding]:
    """Return what came of a trial of one of the fork's trainers, and of a second with the option that the first asks for."""
    trainer = ("--trainer", name, *(["--set", "TRAINER.KDPL.ALLOW", *allow] if allow else []))
    found = trial(fork, *trainer)
    if found.get("still"):  # some trainers act on the last of CLIP's 12 layers
        found = trial(fork, *trainer, "--layers", "12")
    what = f"{name} of the fork, wrapped" if name in found.get("ours", ()) else f"KDPL_{name}"
    what += f" with TRAINER.KDPL.ALLOW {allow[0]}" if allow else ""
    if "moved" not in found:
        needed = [word for word in ALLOWED if f"TRAINER.KDPL.ALLOW {word}" in found.get("refused", "") and not allow]
        return [_failed(what, found), *(finding for word in needed for finding in _tried(fork, name, word))]
    moved = f"{found['moved']} of {found['learned']} learned parameters moved"
    moved += f"; not {', '.join(found['still'])}" if found["still"] else ""
    return [Finding(found["moved"] > 0, f"{what}: {found['steps']} steps without labels, {moved}")]


def _failed(what: str, found: dict[str, Any]) -> Finding:
    why = f"refused. {found['refused']}" if "refused" in found else found.get("error", "no result")
    further = [("in", found.get("where")), ("way out:", found.get("way_out"))]
    return Finding(False, "\n     ".join([f"{what}: {why}", *(f"{word} {text}" for word, text in further if text)]))
