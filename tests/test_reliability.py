"""docs/reliability.md tells the truth: the exit codes are the program's, and what it names is there."""

import re

from support import ROOT

from kdpl.common import exits

TEXT = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")


def section(heading):
    return re.split(r"^## ", TEXT.split(f"\n## {heading}\n")[1], flags=re.M)[0]


def cells(text):
    """Return the cells of the tables in a text, without their first two lines."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    body = [line for line, rule in zip(lines, [*lines[1:], ""], strict=True) if not {rule[:5], line[:5]} & {"| ---"}]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in body]


def test_the_exit_codes_are_those_of_the_program():
    documented = {name.strip("`"): int(code) for code, name, *_ in cells(section("Exit codes")) if name}
    assert documented == {name: value for name, value in vars(exits).items() if isinstance(value, int)}


def test_every_file_that_is_named_is_there():
    paths = set(re.findall(r"(?:`|python |bash )((?:kdpl|datasets|scripts|tests)/[\w/]+\.(?:py|sh))", TEXT))
    assert len(paths) > 5 and not [path for path in paths if not (ROOT / path).exists()]
