"""docs/reliability.md tells the truth: the tests that hold its promises exist, and the exit codes are the program's."""

import ast
import re

from support import ROOT

from kdpl.common import exits

TEXT = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def rows(heading):
    """Return the cells of the table below a heading, without its first two lines."""
    section = re.split(r"^## ", TEXT.split(f"\n## {heading}\n")[1], flags=re.M)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_every_promise_names_tests_that_exist():
    promises = rows("Promises")
    assert promises
    tests = {}
    for promise, named in promises:
        references = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", named)
        assert references and len(references) == named.count("::"), promise
        for file, name in references:
            if file not in tests:
                tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
                tests[file] = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
            assert name in tests[file], f"{promise}: there is no {file}::{name}"


def test_the_exit_codes_are_those_of_the_program():
    documented = {name.strip("`"): int(code) for code, name, *_ in rows("Exit codes") if name}
    assert documented == {name: value for name, value in vars(exits).items() if name.isupper()}


def test_every_file_that_is_named_is_there():
    paths = set(re.findall(r"(?:`|python |bash )((?:kdpl|datasets|scripts|tests)/[\w/]+\.(?:py|sh))", TEXT))
    assert len(paths) > 5 and not [path for path in paths if not (ROOT / path).exists()]
