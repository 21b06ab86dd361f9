"""What stopped a fork's Python, where in the fork, and what to do, if that is known."""

import re
import signal
import sys
from importlib.machinery import PathFinder
from pathlib import Path

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


def reason(stderr: str, status: int) -> str:
    """Return the error that ended a process in a line: of several, the first, which others were raised for."""
    if status < 0:
        return f"ended by signal {-status}" + (", as if memory ran out" if status == -signal.SIGKILL else "")
    found = _ERROR.findall(stderr.partition(_WHILE_HANDLING)[0]) or stderr.strip().splitlines()
    return found[-1] if found else f"exit status {status}"


def place(stderr: str, fork: Path) -> str:
    """Return the innermost line of the fork's code in a traceback, 'FORK/trainers/coop.py, line 7: x = y', or an empty text."""
    root = fork.resolve()
    own = [frame for frame in _frames(stderr, root) if _is_own(frame[0], root)]
    return f"{fork / own[-1][0].relative_to(root)}, line {own[-1][1]}: {own[-1][2]}" if own else ""


def is_of_the_fork(stderr: str, fork: Path) -> bool:
    """Return whether the fork's own code raised the error of a traceback, such as by an `assert`."""
    frames = _frames(stderr, fork.resolve())
    return bool(frames) and _is_own(frames[-1][0], fork.resolve())


def _frames(stderr: str, root: Path) -> list[tuple[Path, str, str]]:
    """Return file, line and code of each call in a traceback; of several, of the first, which others were raised for."""
    found = _FRAME.findall(stderr.partition(_WHILE_HANDLING)[0])
    return [(root / file, line, code) for file, line, code in found]


def _is_own(file: Path, root: Path) -> bool:
    return file.is_relative_to(root) and "site-packages" not in file.parts and file.name[0] != "<"


def way_out(error: str, where: str, fork: Path, bundled: bool) -> str:
    """Return what lets the fork run after an error; empty if that is not known.

    Args:
        error, where: as `reason` and `place` give them.
        fork: its folder.
        bundled: whether the bundled engine stands in for Dassl.
    """
    return _shadowed(f"{error} {where}", fork) or _known(error, where, fork, bundled)


def _known(error: str, where: str, fork: Path, bundled: bool) -> str:
    if known := next((what for sign, what in _SIGNS.items() if sign in error), ""):
        return known
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
    """Return how to get a package that Python did not find: from PyPI, unless it is the fork's own."""
    if (fork / name).is_dir() or (fork / f"{name}.py").is_file():
        return f"'{name}' is of the fork itself: start Python in '{fork}', with no other '{name}' in PYTHONPATH"
    return f"pip install {_requirement(name, fork)}, which the fork needs"


def _requirement(package: str, fork: Path) -> str:
    """Return a package as the fork's requirements name it."""
    lines = [line for file in sorted(fork.glob("*requirements*.txt")) for line in file.read_text(errors="replace").splitlines()]
    named = [line for line in lines if re.match(rf"{package}\b", line.strip().replace("-", "_"), re.IGNORECASE)]
    return f"'{named[0].strip()}'" if named else package
