"""The pages, figures and the notebook are what the code says and draws, and the site builds without a warning."""

import importlib
import importlib.util
import re
import shlex
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import pytest
from support import ROOT

from kdpl import train
from kdpl.__main__ import COMMANDS

DOCS = ROOT / "docs"
FIGURES = DOCS / "figures"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]


def script(path: Path):
    """Return a script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(page: Path) -> list[list[str]]:
    """Return the commands in the blocks and sentences of a page, as words, without comments."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```", text, re.M | re.S) + re.findall(r"((?:^    \S.*\n)+)", text, re.M)
    spans = re.findall(r"`((?:kdpl|python -m kdpl\.|python \w+\.py)[^`\n]* [^`\n]+)`", text)
    lines = "\n".join([*blocks, *spans]).replace("\\\n", " ").splitlines()
    return [words for line in lines if "..." not in line and (words := shlex.split(line, comments=True))]


def test_the_configuration_reference_is_what_its_script_writes():
    for page, write in script(DOCS / "configuration.py").PAGES.items():
        assert (DOCS / page).read_text(encoding="utf-8") == write(), "run: python docs/configuration.py"


def test_every_figure_is_what_its_script_draws():
    draw = script(DOCS / "figures/draw.py")
    for name, figure in draw.FIGURES.items():
        for theme, palette in draw.PALETTES.items():
            committed = (DOCS / f"figures/{name}-{theme}.svg").read_text(encoding="utf-8")
            assert committed == figure(palette), f"{name}-{theme}.svg differs: run python docs/figures/draw.py {name}"


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A folder with the configurations and a file of names, as the working directory."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_is_understood(page, newcomer, capsys):
    for words in commands(page):
        check_command(words, capsys)


def check_command(words: list[str], capsys) -> None:
    """Check that the flags of a command exist, and that the settings of a training merge and are within their ranges."""
    module, rest = module_of(words)
    if module == "kdpl.train" and "--learner" not in rest:
        args = train.parse_args(rest)
        train.build_cfg(args, args.dataset_config_file)
    elif module:
        with pytest.raises(SystemExit):
            name, _, function = module.partition(":")
            getattr(importlib.import_module(name), function or "main")(["--help"])
        known = set(re.findall(r"--[a-z][a-z0-9-]*", capsys.readouterr().out))
        used = {word for word in rest[: rest.index("--") if "--" in rest else None] if word.startswith("--")}
        assert used <= known, f"{shlex.join(words)}: {module} has no {', '.join(used - known)}"


def module_of(words: list[str]) -> tuple[str, list[str]]:
    """Return the module that a command runs, empty if it is not one of KDPL's, and its arguments."""
    words = words[next((i for i, word in enumerate(words) if "=" not in word), 0) :]
    for i, word in enumerate(words):
        if word in ("train.py", "predict.py"):
            return f"kdpl.{word[:-3]}", words[i + 1 :]
    if words[0] == "kdpl" and words[1] in COMMANDS:
        return COMMANDS[words[1]].module, words[2:]
    if words[:2] == ["python", "-m"] and words[2].startswith("kdpl."):
        return words[2], words[3:]
    return "", []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built as `mkdocs build --strict` does."""
    for name in ("mkdocs", "material", "mkdocstrings", "nbconvert", "latex2mathml"):
        pytest.importorskip(name, reason=f"the site needs {name}: pip install -e '.[docs]'")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config
    from mkdocs.exceptions import Abort

    folder = tmp_path_factory.mktemp("site")
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True))
    except Abort as abort:  # a SystemExit, which would end pytest
        pytest.fail(f"mkdocs build --strict: {abort}; the log has the warnings")
    return folder


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_every_link_in_it_leads_somewhere(site):
    pages = {page.name: page.read_text(encoding="utf-8") for page in site.glob("*.html") if page.name != "404.html"}
    assert len(pages) > 20
    ids = {name: set(re.findall(r'\sid="([^"]+)"', text)) for name, text in pages.items()}
    for name, text in pages.items():
        for link in re.findall(r'\s(?:href|src|srcset)="(?!https?:|data:|mailto:|javascript:)([^"]+)"', text):
            path, _, anchor = unescape(unquote(link)).partition("#")
            assert not path or (site / path).exists(), f"{name} links to {link}"
            assert not anchor or anchor in ids.get(path or name, {anchor}), f"{name} links to {link}"


@pytest.mark.slow
def test_the_notebook_runs_and_its_student_closes_half_of_the_gap_without_a_label(tmp_path):
    for name in ("nbformat", "nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name, reason=f"the notebook needs {name}: pip install -e '.[test]'")
    import nbformat
    from nbclient import NotebookClient

    run = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    NotebookClient(run, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    after = figures(run)
    sentence, teacher, learned = (after[who][0] for who in ("student, a sentence", "teacher, a sentence", LEARNED))
    assert learned > sentence + 0.5 * (teacher - sentence), "at least half of the gap is closed without a label"


LEARNED = "student, learned, no labels"


def figures(notebook) -> dict[str, list[float]]:
    """Return the accuracies that a notebook prints last, by name: one, or those of base and new classes."""
    printed = "".join(o.text for cell in notebook.cells for o in cell.get("outputs", []) if o.output_type == "stream")
    rows = re.findall(r"^(\S.{2,30}?) {2,}([\d.]+)(?: +([\d.]+)| %)$", printed, re.M)
    return {name: [float(value) for value in values if value] for name, *values in rows}
