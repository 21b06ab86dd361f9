"""Put wrong things into a copy of the code, one after another, and see that a test catches each.

    python tests/mutations/run.py                          all of tests/mutations/catalogue.py
    python tests/mutations/run.py "a reversed KL" ...      some, by the beginning of their names

A mutation replaces a function, method or constant of a module by what an expression makes of it, in a line behind the module's
own, so that it does not depend on how the code is written. Printed is a table: mutation, file, the test that failed. The exit
status is 0 if every mutation is caught, 1 if one survives, 2 if a name does not exist or tests cannot be run without mutation.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from catalogue import MUTATIONS, Mutation, located

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "configs", "datasets", "docs", "kdpl", "scripts", "tests", "tools", "trainers")
FILES = ("pyproject.toml", "setup.py", "train.py", "predict.py", "README.md", "CHANGELOG.md")


def copy_tree(target: Path) -> None:
    """Copy what the tests need."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)


def run_tests(root: Path, tests: list[str], *options: str) -> tuple[int, str]:
    """Run tests on a copy, and return pytest's exit status and output."""
    path = os.pathsep.join((str(root), str(root / "tests")))
    env = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "KDPL_CACHE": str(root.parent / "cache")}
    command = [sys.executable, "-m", "pytest", "-q", "-rfEp", "--tb=short", "-p", "no:cacheprovider", *options, *tests]
    process = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    return process.returncode, process.stdout + process.stderr


def failed_in(output: str) -> list[str]:
    """Return the tests that pytest's summary names as failed, errors of their fixtures included."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.M)


def verdict(root: Path, mutation: Mutation) -> str:
    """Return the test that fails under a mutation, or in bold why there is none."""
    path = root / mutation.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(f"{sound}\n\n{mutation.target} = ({mutation.wrong})({mutation.target})\n", encoding="utf-8")
    try:
        module = mutation.file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = module if module.startswith(("kdpl", "benchmarks")) else f"kdpl.{module}"
        code = f"import importlib, kdpl; assert kdpl.__file__.startswith({str(root)!r}); importlib.import_module({module!r})"
        where = {**os.environ, "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1"}
        imported = subprocess.run(
            [sys.executable, "-c", code], cwd=root, env=where, capture_output=True, text=True, check=False
        )
        if imported.returncode:
            return f"**not tried: it cannot be applied: {imported.stderr.strip().splitlines()[-1]}**"
        status, output = run_tests(root, [located(test) for test in mutation.tests], "-x")
    finally:
        path.write_text(sound, encoding="utf-8")
    if failed := failed_in(output):
        return f"`{failed[0]}`"
    if status == 0 and re.search("^PASSED ", output, re.M):
        return "**nothing: it survives**"
    return f"**not tried: its tests do not run: {output.strip().splitlines()[-1] if output.strip() else status}**"


def main(names: list[str]) -> int:
    some = [m for m in MUTATIONS if not names or any(m.name.startswith(name) for name in names)]
    if missing := [name for name in names if not any(m.name.startswith(name) for m in MUTATIONS)]:
        print(f"error: there is no mutation '{missing[0]}': see tests/mutations/catalogue.py", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="kdpl-mutations-") as folder:
        root = Path(folder) / "tree"
        root.mkdir()
        copy_tree(root)
        _, output = run_tests(root, sorted({located(test) for m in some for test in m.tests}))
        broken = failed_in(output)
        print("| mutation | file | caught by |\n| --- | --- | --- |", flush=True)
        verdicts = []
        for m in some:
            before = [test for test in broken if test.startswith(tuple(map(located, m.tests)))]
            verdicts.append(f"**not tried: `{before[0]}` fails without it**" if before else verdict(root, m))
            print(f"| {m.name} | `{m.file}` | {verdicts[-1]} |", flush=True)
    survived, untried = (sum(v.startswith(f"**{word}") for v in verdicts) for word in ("nothing", "not tried"))
    print(f"{len(some) - survived - untried} of {len(some)} mutations are caught, {survived} survive, {untried} not tried")
    return 1 if survived else 2 if untried else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
