"""Put wrong things into a copy of the code, one after another, and see that a test catches each.

    python tests/mutations/run.py                          all of tests/mutations/catalogue.py
    python tests/mutations/run.py "a reversed KL" ...      some, by name or the beginning of it
    python tests/mutations/run.py --list

A mutation is the replacement of a text that stands exactly once in a file. The tests that must catch it are run in the copy,
first all of them on the code as it is. Printed is a table: mutation, file, the test that failed. The exit status is 0 if every
mutation is caught, 1 if one survives, 2 if a text is not found, or a test is skipped, fails or cannot be run without one.
"""

import argparse
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from catalogue import MUTATIONS, Mutation

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FOLDERS = ("benchmarks", "configs", "datasets", "docs", "kdpl", "scripts", "tests", "tools", "trainers")
FILES = ("pyproject.toml", "setup.py", "train.py", "predict.py", "README.md")
SCENES = "emoji_scenes"  # the drawn images of the embedded benchmark, in the cache
HEAVY = ("torch", "torchvision", "clip", "open_clip", "hypothesis", "pytest")  # imported once, for all runs of tests


class UnusableError(Exception):
    """A mutation or a test cannot be used as it stands."""


class SkippedError(Exception):
    """All tests of a mutation are skipped here, as without an optional package, so nothing is known of it."""


class Result(NamedTuple):
    """The end of a run of tests."""

    status: int
    output: str


def copy_tree(target: Path) -> None:
    """Copy what the tests need."""
    for name in FOLDERS:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in FILES:
        shutil.copy2(ROOT / name, target / name)


def mutated(root: Path, mutation: Mutation) -> dict[Path, str]:
    """Return the texts of the files that a mutation changes, after it.

    Raises:
        UnusableError: a text to be replaced does not stand exactly once in its file.
    """
    texts: dict[Path, str] = {}
    for file, old, new in mutation.changes:
        text = texts.get(root / file) or (root / file).read_text(encoding="utf-8")
        if text.count(old) != 1:
            raise UnusableError(f"'{mutation.name}': {file} has the text {text.count(old)} times, expected once:\n{old}")
        texts[root / file] = text.replace(old, new)
    return texts


class Copy:
    """A copy of the tree, in which tests run on what is in it."""

    def __init__(self, folder: Path):
        self.root, self.caches = folder / "tree", folder / "caches"
        self.root.mkdir()
        copy_tree(self.root)

    def pytest(self, tests: list[str], cache: str, *options: str) -> Result:
        """Run tests with an empty cache, but for the drawn images of the embedded benchmark."""
        folder, drawn = self.caches / cache, self.caches / "sound" / SCENES
        folder.mkdir(parents=True)
        if not drawn.is_dir():
            drawn = Path(os.environ.get("KDPL_TEST_SCENES", drawn))  # of the test run that this runs in
        if drawn.is_dir():
            unfinished = shutil.ignore_patterns(".*")  # drawn by another process at this moment
            shutil.copytree(drawn, folder / SCENES, copy_function=os.link, ignore=unfinished)
        log = folder / "output.txt"
        for name in HEAVY:
            import_module(name)
        process = multiprocessing.get_context("fork").Process(target=self._pytest, args=([*options, *tests], folder, log))
        process.start()
        process.join()
        return Result(process.exitcode, log.read_text(encoding="utf-8", errors="replace"))

    def _pytest(self, tests: list[str], cache: Path, log: Path) -> None:
        """Run tests and end this process, which is a fork that knows nothing of `kdpl` yet."""
        path = [str(self.root), str(self.root / "tests")]
        os.environ |= {"PYTHONPATH": os.pathsep.join(path), "KDPL_CACHE": str(cache), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path[:] = path + [entry for entry in sys.path if Path(entry).resolve() not in (HERE, ROOT)]
        sys.dont_write_bytecode = True
        os.chdir(self.root)
        file = os.open(log, os.O_WRONLY | os.O_CREAT)
        os.dup2(file, 1)
        os.dup2(file, 2)
        options = ["-x", "-q", "-rfp", "--tb=short", "-p", "no:cacheprovider", "--basetemp", str(self.root.parent / "pytest")]
        status = import_module("pytest").main([*options, *tests])
        sys.stdout.flush()
        os._exit(int(status))

    def failing(self, tests: list[str]) -> list[str]:
        """Return the tests that fail without a mutation, having seen that it is the copy that is tested.

        Raises:
            UnusableError: they cannot be run, or they import another `kdpl`.
        """
        where = self.root / "tests" / "test_copy.py"
        where.write_text(f"def test_copy():\n    import kdpl\n    assert kdpl.__file__.startswith({str(self.root)!r})\n")
        result = self.pytest([str(where), *tests], "sound", "--maxfail=1000")
        where.unlink()
        failed = _failed(result.output)
        if result.status not in (0, 1) or bool(result.status) != bool(failed) or any("test_copy" in test for test in failed):
            raise UnusableError(f"Without a mutation the tests cannot be run:\n{result.output[-5000:]}")
        return failed

    def caught_by(self, mutation: Mutation) -> str | None:
        """Return the test that fails under a mutation; None: it survives.

        Raises:
            UnusableError: the tests cannot be run.
            SkippedError: they are all skipped.
        """
        texts = mutated(self.root, mutation)
        before = {path: path.read_text(encoding="utf-8") for path in texts}
        try:
            for path, text in texts.items():
                path.write_text(text, encoding="utf-8")
            result = self.pytest(list(mutation.tests), re.sub(r"\W+", "_", mutation.name))
        finally:
            for path, text in before.items():
                path.write_text(text, encoding="utf-8")
        failed = _failed(result.output)
        if result.status not in (0, 1) or (result.status == 1 and not failed):
            raise UnusableError(f"'{mutation.name}': the tests cannot be run:\n{result.output[-3000:]}")
        if not failed and not re.search("^PASSED ", result.output, re.M):
            raise SkippedError
        return failed[0] if failed else None


def _failed(output: str) -> list[str]:
    """Return the tests that pytest's summary names as failed, errors of their fixtures included."""
    return re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.M)


def chosen(names: list[str], mutations: list[Mutation]) -> list[Mutation]:
    """Return the mutations whose names begin with one of these, or all."""
    for name in names:
        if not any(mutation.name.startswith(name) for mutation in mutations):
            raise UnusableError(f"There is no mutation '{name}': see --list.")
    return [m for m in mutations if not names or any(m.name.startswith(name) for name in names)]


def run(mutations: list[Mutation]) -> int:
    """Try mutations and print the table; return the exit status."""
    with tempfile.TemporaryDirectory(prefix="kdpl-mutations-") as folder:
        copy = Copy(Path(folder))
        for mutation in mutations:
            mutated(copy.root, mutation)
        tests = sorted({test for mutation in mutations for test in mutation.tests})
        print(f"{len(mutations)} mutations, {len(tests)} tests or groups of tests that must catch them", flush=True)
        failing = copy.failing(tests)
        print("| mutation | file | caught by |\n| --- | --- | --- |", flush=True)
        survived = untried = 0
        for mutation in mutations:
            files = ", ".join(sorted({f"`{file}`" for file, _, _ in mutation.changes}))
            if broken := [test for test in failing if test.startswith(mutation.tests)]:
                untried += 1
                print(f"| {mutation.name} | {files} | **not tried: `{broken[0]}` fails without it** |", flush=True)
                continue
            try:
                test = copy.caught_by(mutation)
            except SkippedError:
                untried += 1
                print(f"| {mutation.name} | {files} | **not tried: its tests are skipped here** |", flush=True)
                continue
            survived += test is None
            print(f"| {mutation.name} | {files} | {f'`{test}`' if test else '**nothing: it survives**'} |", flush=True)
    print(f"{len(mutations) - survived - untried} of {len(mutations)} mutations are caught, {survived} survive", end="")
    print(f", {untried} are not tried because their tests fail without them or are skipped" if untried else "")
    return 1 if survived else 2 if untried else 0


def main(argv: list[str] | None = None, mutations: list[Mutation] = MUTATIONS) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of mutations, or how they begin (default: all)")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    args = parser.parse_args(argv)
    try:
        some = chosen(args.names, mutations)
        if args.list:
            print("\n".join(mutation.name for mutation in some))
            return 0
        return run(some)
    except UnusableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
