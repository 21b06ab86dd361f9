"""The plan of the house (docs/architecture.md): imports run down the layers."""

import ast
from functools import cache
from pathlib import Path

from support import ROOT

LAYERS = (
    "common", "config", "clip", "text", "students", "distill", "training", "bundle", "classifier", "experiments", "datasets",
    "trainers", "photos", "app",
)  # fmt: skip
FILES = [p for folder in ("kdpl", "trainers", "datasets") for p in sorted((ROOT / folder).rglob("*.py"))]
ENGINE = [p for p in FILES if "fallback" in p.parts]
FILES = [p for p in FILES if p not in ENGINE]
COMMANDS = len(LAYERS)


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "kdpl" else ("kdpl", *parts)
    return ".".join(parts).removesuffix(".__init__")


MODULES = {module_of(path) for path in FILES}


def layer(module: str) -> int:
    room = module.split(".")[1] if "." in module else ""
    return LAYERS.index(room) if room in LAYERS else COMMANDS


@cache
def imports_of(path: Path) -> list[str]:
    """Return the modules of KDPL that a file imports, deferred imports too; those for type checkers alone do not count."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    unreal = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {child for n in unreal for child in ast.walk(n)}
    found = []
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names if alias.name.startswith("kdpl.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "kdpl":
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES or node.module == "kdpl" else node.module for name in inside]
    return found


def arrows_up(module: str, imports: list[str]) -> list[str]:
    return [f"{module} -> {other}" for other in imports if layer(other) > layer(module)]


def test_imports_run_down_the_floors():
    assert not [
        arrow for path in FILES if path != ROOT / "kdpl/__init__.py" for arrow in arrows_up(module_of(path), imports_of(path))
    ]
    assert arrows_up("kdpl.text.prompts", ["kdpl.students.base"]), "an arrow up is seen"


def test_no_modules_import_each_other_in_a_circle():
    graph = {module_of(path): set(imports_of(path)) for path in FILES}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join((*above, module))
        if module not in done:
            for other in graph.get(module, ()):
                visit(other, (*above, module))
            done.add(module)

    for module in graph:
        visit(module, ())
