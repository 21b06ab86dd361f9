"""Pages of the site that lie elsewhere: README, CONTRIBUTING, the notebook, the exit codes, linked sources; and formulas."""

import re
from html import unescape
from pathlib import Path

import nbformat
from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
NOTEBOOK = "tutorial.ipynb"
FORMULA = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.S)
OUTSIDE = re.compile(r"\]\(((?:\.\./)+)([^)#]+)(?:#[^)]*)?\)")  # a link to a file of the repository outside docs/


def from_root(page: Path) -> str:
    """Return a page of the repository's root with its links as if it lay in docs/."""
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!http|#)([^)]+)\)", r"](../\1)", text).replace("](../docs/", "](")
    return re.sub(r'(src|srcset)="docs/', r'\1="', text).replace("](../CONTRIBUTING.md", "](contributing.md")


def exit_codes() -> str:
    """Return the section of docs/reliability.md as a page."""
    text = (DOCS / "reliability.md").read_text(encoding="utf-8").split("\n## Exit codes\n")[1]
    return "# Exit codes\n" + re.split(r"^## ", text, flags=re.M)[0]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages; the notebook's pictures become files beside them."""
    body, resources = MarkdownExporter().from_notebook_node(nbformat.read(DOCS / NOTEBOOK, as_version=4))
    files.remove(files.get_file_from_path(NOTEBOOK))
    pages = {
        "index.md": from_root(ROOT / "README.md"),
        "contributing.md": from_root(ROOT / "CONTRIBUTING.md"),
        "exit_codes.md": exit_codes(),
        "tutorial.md": body,
        **resources["outputs"],
    }
    for path, content in pages.items():
        files.append(File.generated(config, path, content=content))
    for text in [file.content_string for file in files.documentation_pages()]:
        for _, path in OUTSIDE.findall(text):
            if not files.get_file_from_path(source_page(path)):
                files.append(File.generated(config, source_page(path), content=source(ROOT / path)))
    return files


def source_page(path: str) -> str:
    """Return where the site has a file or folder of the repository, as plain text."""
    return f"repository/{path.rstrip('/')}.txt"


def source(path: Path) -> str:
    """Return a file's text, or the names in a folder."""
    return "\n".join(sorted(p.name for p in path.iterdir())) if path.is_dir() else path.read_text(encoding="utf-8")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Point links to the notebook and to files outside docs/ to the pages made of them."""
    markdown = markdown.replace(f"]({NOTEBOOK})", "](tutorial.md)").replace("](../README.md)", "](index.md)")
    markdown = markdown.replace("<details>", '<details markdown="1">')
    return OUTSIDE.sub(lambda link: f"]({source_page(link[2])})", markdown)


def on_page_content(html: str, **_: object) -> str:
    """Turn formulas into MathML, which browsers show without a script."""
    return FORMULA.sub(lambda formula: convert(unescape(formula[1]).strip(), display="block"), html)
