"""Python in a fork's folder, with this process's KDPL and nothing else of its checkout on the path, and what stopped it."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from kdpl.common.environment import PACKAGE, dassl_in_use

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
BENCHMARKS = ("EmojiMeals",)  # the data set of a run in kdpl.forks.report
_FRAME = re.compile(r'^ *File "(.+)", line (\d+), in .*\n(?:(?! *File ") +(.*))?', re.MULTILINE)
_ERROR = re.compile(r"^(?:\w+\.)*(\w*(?:Error|Exception|Exit|Interrupt)\b.*)$", re.MULTILINE)
_WHILE_HANDLING = "\nDuring handling of the above exception, another exception occurred:\n"
_LACKING = re.compile(  # in a wrapped trainer, or in Dassl
    r"'(?:KDPL|Wrapped)_\w+' object has no attribute '(\w+)'"
    r"|cannot import name '(\w+)' from 'dassl"
    r"|No module named 'dassl\.([\w.]+)'"
)
_ASKED = re.compile(r"'([A-Z][\w.]*)' is not in list")  # a setting that a fork looks for in its command line
_SIGNS = {
    "pkg_resources": "pip install 'setuptools<70': newer ones lack what the fork imports",
    "Weights only load failed": "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD=1 in the environment, if you trust the fork's file: newer "
    "PyTorch reads nothing but weights without it",
}
_PACKAGE = re.compile(r"No module named '(\w+)")


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
    env, command = {**os.environ, "PYTHONPATH": os.pathsep.join(found)}, [sys.executable, "-c", _BOOT, *args]
    said: dict[str, Any] = {"capture_output": True, "text": True, "errors": "replace"}
    try:
        process = subprocess.run(command, cwd=fork, env=env, timeout=TIMEOUT, check=False, **said)
    except subprocess.TimeoutExpired:
        return {"error": f"no result within {TIMEOUT} s"}
    result = next((line for line in reversed(process.stdout.splitlines()) if line.startswith(RESULT)), None)
    found = json.loads(result.removeprefix(RESULT)) if result else {}
    if result is None and process.returncode:
        found["error"] = reason(process.stderr, process.returncode)
    if error := found.get("error", found.get("refused", "")):
        found["where"], found["own"] = place(process.stderr, fork)
        found["way_out"] = way_out(error, found["where"], fork, "bundled" in dassl_in_use())
    return found


def reason(stderr: str, status: int) -> str:
    """Return the error that ended a process in a line: of several, the first, which others were raised for."""
    if status < 0:
        return f"ended by signal {-status}" + (", as if memory ran out" if status == -signal.SIGKILL else "")
    found = _ERROR.findall(stderr.partition(_WHILE_HANDLING)[0]) or stderr.strip().splitlines()
    return found[-1] if found else f"exit status {status}"


def place(stderr: str, fork: Path) -> tuple[str, bool]:
    """Return the innermost line of the fork's code in a traceback, and whether it raised the error, such as by an `assert`.

    The line is 'FORK/trainers/coop.py, line 7: x = y', or an empty text. Of several errors it is of the first, which others
    were raised for.
    """
    root, found = fork.resolve(), _FRAME.findall(stderr.partition(_WHILE_HANDLING)[0])
    frames = [(root / file, line, code) for file, line, code in found]
    own = [f for f in frames if f[0].is_relative_to(root) and "site-packages" not in f[0].parts and f[0].name[0] != "<"]
    if not own:
        return "", False
    file, line, code = own[-1]
    return f"{fork / file.relative_to(root)}, line {line}: {code}", own[-1] is frames[-1]


def way_out(error: str, where: str, fork: Path, bundled: bool) -> str:
    """Return what lets the fork run after an error; empty if that is not known.

    Args:
        error, where: as `reason` and `place` give them.
        fork: its folder.
        bundled: whether the bundled engine stands in for Dassl.
    """
    known = [what for sign, what in _SIGNS.items() if sign in error]
    if what := next(filter(None, [_shadowed(f"{error} {where}", fork), *known]), ""):
        return what
    if lacking := _LACKING.search(error):
        return _dassl_with(next(filter(None, lacking.groups())), fork, bundled)
    if (package := _PACKAGE.search(error)) and package[1] != "dassl":
        return _package(package[1], fork)
    if asked := _ASKED.search(error):
        return f"the fork's main() asks for it on the command line, its README with what value: --set {asked[1]} VALUE"
    if any(name in error for name in BENCHMARKS) or "DATASET.NAME" in where:
        return "the fork knows some data sets by name, and the benchmark is none of them: try it on one of those"
    files = "No such file" in error or "does not exist" in error
    return "the fork's README says where it gets this file from" if files else ""


def _dassl_with(name: str, fork: Path, bundled: bool) -> str:
    """Return how to use a Dassl that has something: one beside the fork, if its code holds the name."""
    fork = fork.resolve()
    for package in sorted([*fork.glob("*/dassl/__init__.py"), *fork.parent.glob("*/dassl/__init__.py")]):
        folder = package.parents[1]
        if any(name in file.read_text(encoding="utf-8", errors="replace") for file in folder.glob("dassl/**/*.py")):
            return f"PYTHONPATH='{folder}', a Dassl that has {name}"
    present = "bundled engine" if bundled else "installed Dassl"
    return (
        f"the {present} has no {name}: put the folder of a Dassl that has it, such as the fork's authors', first in PYTHONPATH"
    )


def _shadowed(said: str, fork: Path) -> str:
    """Return what to do if an installed package is found in place of a folder without __init__.py that an error names.

    KDPL itself brings `clip`.
    """
    installed = [entry for entry in sys.path if "site-packages" in Path(entry).parts]
    for folder in sorted(fork.iterdir()):
        name, is_package = folder.name, (folder / "__init__.py").is_file() or not any(folder.glob("*.py"))
        if is_package or not re.search(rf"\b{re.escape(name)}\.", said):
            continue
        spec = PathFinder.find_spec(name, installed)
        if spec is not None and spec.origin is not None:
            file = fork / name / "__init__.py"
            return f"the installed package '{name}' is found in place of the fork's folder: create an empty '{file}'"
    return ""


def _package(name: str, fork: Path) -> str:
    """Return how to get a package that Python did not find: from PyPI, as the fork names it, unless it is the fork's own."""
    if (fork / name).is_dir() or (fork / f"{name}.py").is_file():
        return f"'{name}' is of the fork itself: start Python in '{fork}', with no other '{name}' in PYTHONPATH"
    lines = [line for file in sorted(fork.glob("*requirements*.txt")) for line in file.read_text(errors="replace").splitlines()]
    named = [line for line in lines if re.match(rf"{name}\b", line.strip().replace("-", "_"), re.IGNORECASE)]
    requirement = f"'{named[0].strip()}'" if named else name
    return f"pip install {requirement}, which the fork needs"
