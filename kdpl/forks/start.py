"""Python in a fork's folder, with the KDPL of this process and nothing else of its checkout on the path."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from kdpl.common.environment import PACKAGE, dassl_in_use
from kdpl.forks.faults import is_of_the_fork, place, reason, way_out

RESULT = "RESULT "  # before what a trial prints
TIMEOUT = 3600  # seconds of a trial, which takes a minute where nothing else runs
# The folder of a checkout must not be on the path: its `trainers` and `datasets` would be found in place of a fork's, if these
# have no __init__.py.
_BOOT = f"""
import runpy, sys
from importlib import util
spec = util.spec_from_file_location("kdpl", {str(PACKAGE / "__init__.py")!r}, submodule_search_locations=[{str(PACKAGE)!r}])
sys.modules["kdpl"] = kdpl = util.module_from_spec(spec)
spec.loader.exec_module(kdpl)
module = sys.argv[1] == "-m"
sys.argv = sys.argv[2:] if module else sys.argv[1:]
run = runpy.run_module if module else runpy.run_path
run(sys.argv[0], run_name="__main__")
"""


def trial(fork: Path, *args: str) -> dict[str, Any]:
    """Run `python -m kdpl.forks.trial` in a fork's folder, and return its result."""
    return run_python(fork, "-m", "kdpl.forks.trial", *args)


def run_python(fork: Path, *args: str) -> dict[str, Any]:
    """Run Python in a fork's folder with the KDPL of this process.

    Returns:
        The JSON behind RESULT, or `error`, in both cases with `where` in the fork's code, whether that code raised it (`own`),
        and the `way_out`; empty if neither.
    """
    folders = os.environ.get("PYTHONPATH", "").split(os.pathsep)  # the run is in another folder
    found = [os.path.abspath(folder) for folder in folders if folder and Path(folder).resolve() != PACKAGE.parent]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(found)}
    try:
        process = subprocess.run(
            [sys.executable, "-c", _BOOT, *args],
            cwd=fork,
            env=env,
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
        found["where"], found["own"] = place(process.stderr, fork), is_of_the_fork(process.stderr, fork)
        found["way_out"] = way_out(error, found["where"], fork, "bundled" in dassl_in_use())
    return found
