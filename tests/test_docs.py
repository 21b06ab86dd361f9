"""The pages of docs/ and CONTRIBUTING.md tell the truth about files, folders and the worked example."""

import ast
import pkgutil
import re

import pytest
from support import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FOLDERS = "benchmarks|configs|datasets|docs|kdpl|scripts|tests|tools|trainers"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_linked_or_named_file_exists(page):
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", text)
    assert not [link for link in links if not (page.parent / link).exists()]
    named = re.findall(rf"(?<![\w/.$])((?:{FOLDERS})/[\w/+.-]*\w\.(?:py|sh|yaml|csv|md|txt))\b", text)
    inside = "|".join(path.name for path in (ROOT / "kdpl").iterdir() if path.is_dir())
    named += re.findall(rf"`((?:{FOLDERS}|{inside})/[\w/+.-]*)`", text)
    missing = [path for path in named if not (ROOT / path).exists() and not (ROOT / "kdpl" / path).exists()]
    assert not [path for path in missing if "TRAINER" not in path], missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_python_of_a_page_is_python_and_imports_what_there_is(page):
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] in ("kdpl", "dassl"):
                for alias in node.names:
                    pkgutil.resolve_name(f"{node.module}:{alias.name}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_named_part_of_the_package_exists(page):
    for name in re.findall(r"`(kdpl(?:\.\w+)+)[`(]", page.read_text(encoding="utf-8")):
        if not name.endswith(".json"):
            pkgutil.resolve_name(name)  # raises an error with the name


def test_the_architecture_page_lists_the_floors_from_the_top_down():
    """LAYERS is the list that tests/test_architecture.py holds the imports to."""
    tree = ast.parse((ROOT / "tests/test_architecture.py").read_text(encoding="utf-8"))
    (layers,) = (n.value for n in tree.body if isinstance(n, ast.Assign) and n.targets[0].id == "LAYERS")
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| (\d+) \| `(?:kdpl/)?(\w+)/`", text, re.M)
    assert listed == [(str(i + 1), name) for i, name in reversed(list(enumerate(ast.literal_eval(layers))))]
    commands = re.search(r"the commands (.*) \|", text)[1]
    assert set(re.findall(r"`(\w+)`", commands)) == {p.stem for p in (ROOT / "kdpl").glob("*.py")} - {"__init__"}


def test_the_guide_to_a_new_learner_shows_kgcoop_as_it_is():
    source = (ROOT / "kdpl/students/kgcoop.py").read_text(encoding="utf-8")
    node = next(n for n in ast.parse(source).body if isinstance(n, ast.ClassDef))
    guide = (ROOT / "docs/new_student.md").read_text(encoding="utf-8")
    assert f"```python\n{ast.get_source_segment(source, node)}\n```" in guide
