"""Put wrong things into a copy of the code, one after another, and see that a test catches each.

    python tests/mutations/run.py                          all of tests/mutations/catalogue.py
    python tests/mutations/run.py "a reversed KL" ...      some, by name or the beginning of it
    python tests/mutations/run.py --list

A mutation is the replacement of a text that stands exactly once in a file. The tests that must catch it are run in the copy,
first all of them on the code as it is. Printed is a table: mutation, file, the test that failed. The exit status is 0 if every
mutation is caught, 1 if one survives, 2 if a text is not found or a test does not pass or cannot be run without a mutation.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from catalogue import MUTATIONS, Mutation

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("benchmarks", "configs", "datasets", "docs", "kdpl", "scripts", "tests", "tools", "trainers")
FILES = ("pyproject.toml", "setup.py", "train.py", "predict.py", "README.md")
SCENES = "emoji_scenes"  # the drawn images of the embedded benchmark, in the cache


class UnusableError(Exception):
    """A mutation or a test cannot be used as it stands."""


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

    def pytest(self, tests: list[str], cache: str) -> subprocess.CompletedProcess:
        """Run tests with an empty cache, but for the drawn images of the embedded benchmark."""
        folder, drawn = self.caches / cache, self.caches / "sound" / SCENES
        folder.mkdir(parents=True)
        if drawn.is_dir():
            shutil.copytree(drawn, folder / SCENES, copy_function=os.link)
        path = os.pathsep.join([str(self.root), str(self.root / "tests")])
        env = {**os.environ, "PYTHONPATH": path, "KDPL_CACHE": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        options = ["-x", "-q", "-rf", "--tb=short", "-p", "no:cacheprovider", "--basetemp", str(self.root.parent / "pytest")]
        command = [sys.executable, "-m", "pytest", *options, *tests]
        return subprocess.run(command, cwd=self.root, env=env, capture_output=True, text=True, check=False)

    def check_sound(self, tests: list[str]) -> None:
        """See that the copy is what is tested, and that the tests pass on it.

        Raises:
            UnusableError: they do not.
        """
        where = self.root / "tests" / "test_copy.py"
        where.write_text(f"def test_copy():\n    import kdpl\n    assert kdpl.__file__.startswith({str(self.root)!r})\n")
        result = self.pytest([str(where), *tests], "sound")
        where.unlink()
        if result.returncode:
            raise UnusableError(f"Without a mutation these tests do not pass:\n{result.stdout[-5000:]}{result.stderr[-1000:]}")

    def caught_by(self, mutation: Mutation) -> str | None:
        """Return the test that fails under a mutation; None: it survives.

        Raises:
            UnusableError: the tests cannot be run.
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
        failed = re.search(r"^FAILED (\S+)", result.stdout, re.M)
        if result.returncode not in (0, 1) or (result.returncode == 1 and not failed):
            raise UnusableError(f"'{mutation.name}': the tests cannot be run:\n{result.stdout[-3000:]}{result.stderr[-1000:]}")
        return failed[1] if failed else None


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
        copy.check_sound(tests)
        print("| mutation | file | caught by |\n| --- | --- | --- |", flush=True)
        survivors = 0
        for mutation in mutations:
            test = copy.caught_by(mutation)
            survivors += test is None
            files = ", ".join(sorted({f"`{file}`" for file, _, _ in mutation.changes}))
            print(f"| {mutation.name} | {files} | {f'`{test}`' if test else '**nothing: it survives**'} |", flush=True)
    print(f"{len(mutations) - survivors} of {len(mutations)} mutations are caught, {survivors} survive")
    return 1 if survivors else 0


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
