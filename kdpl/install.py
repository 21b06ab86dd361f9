"""Make a fork of CoOp know KDPL: `python -m kdpl.install PATH/TO/FORK` (docs/forks.md).

Makes three changes to the fork's `train.py`, and names its trainers that learn without labels then, and the packages that it
imports and that are not installed. Nothing of the fork is run: its own command is the trial.
"""

import argparse
import ast
import io
import sys
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.common.environment import dassl_in_use
from kdpl.common.files import atomic_write
from kdpl.config.defaults import node_of

MARK = "  # by kdpl.install"
PACKAGES = {"cv2": "opencv-python", "ot": "pot", "sklearn": "scikit-learn"}
REGISTRY, STEP = "TRAINER_REGISTRY", "forward_backward"


class EditError(ValueError):
    """A `train.py` is missing, is not Python, or has no place for a change."""


Change = tuple[int, str]  # behind which line, counted from 1, and what is inserted there, with its indentation


# ------------------------------------------------------------------------------------------------- the three changes


def read_source(path: Path) -> str:
    """Return a Python file's text with its line ends, as its encoding line says.

    Raises:
        EditError: there is no such file, or it cannot be decoded.
    """
    if not path.is_file():
        raise EditError(f"There is no '{path}': expected the folder of a fork of CoOp, with its train.py.")
    try:
        return path.read_bytes().decode(_encoding(path))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise EditError(f"'{path}' cannot be read as Python ({error}).") from error


def missing_changes(source: str, name: str = "train.py") -> list[Change]:
    """Return the changes that a `train.py` still needs, in the order of its lines; none if it has all.

    Raises:
        EditError: it is not Python, or neither defines extend_cfg(cfg) nor calls get_cfg_default().
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError) as error:
        raise EditError(f"'{name}' is not Python that this version reads ({error}).") from error
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    before, behind = _import_lines(tree)
    changes = []
    if "kdpl.trainers" not in imported:
        changes.append((before, "import kdpl.trainers"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if "kdpl.trainers.offer_distilled" not in called:
        changes.append((behind, "kdpl.trainers.offer_distilled()"))
    if "kdpl.extend_cfg" not in called:
        changes.append(_extension(tree, source, name))
    return changes


def _import_lines(tree: ast.Module) -> tuple[int, int]:
    """Return the lines behind which `import kdpl.trainers` stands, and the call that comes when all is imported."""
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = next((node for node in imports if getattr(node, "module", "") != "__future__"), None)
    last = imports[-1].end_lineno if imports else tree.body[0].end_lineno if ast.get_docstring(tree) else 0
    return (first.lineno - 1 if first else last), last


def _extension(tree: ast.Module, source: str, name: str) -> Change:
    """Return the call of kdpl.extend_cfg: at the end of extend_cfg(cfg), or behind `cfg = get_cfg_default()`."""
    lines = source.split("\n")

    def call(line: int, like: ast.stmt, argument: str) -> Change:
        return line, f"{lines[like.lineno - 1][: like.col_offset]}kdpl.extend_cfg({argument})"

    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "extend_cfg" and node.args.args:
            last = node.body[-1]
            returns = isinstance(last, ast.Return)
            if len(node.body) > 1 or not returns:
                return call(last.lineno - 1 if returns else last.end_lineno, node.body[0], node.args.args[0].arg)
    for node in ast.walk(tree):
        match node:
            case ast.Assign([ast.Name(cfg)], ast.Call(of)) if ast.unparse(of).endswith("get_cfg_default"):
                return call(node.end_lineno, node, cfg)
    raise EditError(
        f"'{name}' has neither a function extend_cfg(cfg) nor a call cfg = get_cfg_default(): call kdpl.extend_cfg(cfg) by "
        "hand, where the configuration is built, before files are merged into it."
    )


def apply_changes(source: str, changes: list[Change]) -> str:
    """Return the text with each change on its own marked line; `without_changes` gives the same text back.

    Raises:
        EditError: the result would not be Python, such as where statements share a line.
    """
    end = "\r" if "\r\n" in source else ""
    lines = source.split("\n")  # as `ast` counts them, unlike str.splitlines
    for line, text in sorted(changes, key=lambda change: change[0], reverse=True):
        lines.insert(line, f"{text}{MARK}{end}")
    changed = "\n".join(lines)
    try:
        ast.parse(changed)
    except SyntaxError as error:
        raise EditError(f"The changes do not fit into the file (line {error.lineno}): make them by hand.") from error
    return changed


def without_changes(source: str) -> str:
    """Return the text without the marked lines."""
    return "\n".join(line for line in source.split("\n") if not line.rstrip("\r").endswith(MARK))


def _encoding(path: Path) -> str:
    """Return what a Python file says that it is encoded in; a byte order mark is part of it."""
    return tokenize.detect_encoding(io.BytesIO(path.read_bytes()).readline)[0]


def write_source(path: Path, source: str) -> None:
    """Write a Python file in its encoding, with its mode."""
    mode, content = path.stat().st_mode, source.encode(_encoding(path))
    with atomic_write(path) as file:
        file.write(content)
    path.chmod(mode)


# ----------------------------------------------------------------------------------------------- what the fork's code has


def report(folder: Path) -> Iterator[str]:
    """Yield what the fork's code says of packages and trainers, in lines."""
    trees = []
    for path in sorted([*folder.glob("*.py"), *folder.glob("trainers/**/*.py")]):
        with suppress(EditError, SyntaxError, ValueError):
            trees.append(ast.parse(read_source(path)))
    top = [node for tree in trees for node in tree.body]
    imported = {alias.name.split(".")[0] for node in top if isinstance(node, ast.Import) for alias in node.names}
    imported |= {node.module.split(".")[0] for node in top if isinstance(node, ast.ImportFrom) and not node.level}
    others = imported - sys.stdlib_module_names - {path.stem for path in folder.iterdir()}
    if lacking := sorted(PACKAGES.get(name, name) for name in others if find_spec(name) is None):
        yield f"Not installed, and imported by the fork: pip install {' '.join(lacking)}"
    yield dassl_in_use()
    classes = {node.name: node for node in top if isinstance(node, ast.ClassDef)}
    registered = [n for n, c in classes.items() if any(REGISTRY in ast.unparse(d) for d in c.decorator_list)]
    offered = [name for name in registered if _has_step(name, classes)]
    if offered:  # beside KDPL's own trainer of the same name
        names = [f"Wrapped_{name}" if node_of(f"KDPL_{name}") else f"KDPL_{name}" for name in offered]
        yield f"The fork's trainers without labels: --trainer {', '.join(names)}"
    if rest := [name for name in registered if name not in offered]:
        yield f"Not {', '.join(rest)}: without a {STEP}(batch), the step whose labels KDPL replaces"


def _has_step(name: str, classes: dict[str, ast.ClassDef], depth: int = 9) -> bool:
    node = classes.get(name)
    if node is None or depth == 0:
        return False
    own = any(isinstance(x, ast.FunctionDef) and x.name == STEP for x in node.body)
    return own or any(_has_step(ast.unparse(base).split(".")[-1], classes, depth - 1) for base in node.bases)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kdpl.install", description=__doc__.splitlines()[0])
    parser.add_argument("fork", help="folder of a fork of CoOp, with its train.py")
    parser.add_argument("--dry-run", action="store_true", help="show the changes, make none")
    parser.add_argument("--undo", action="store_true", help="take the changes out again")
    args = parser.parse_args(argv)
    path = Path(args.fork) / "train.py"
    try:
        source = read_source(path)
        if args.undo:
            write_source(path, without_changes(source))
            print(f"'{path}' has no line of kdpl.install.")
            return 0
        changes = missing_changes(source, str(path))
        changed = apply_changes(source, changes)
        for line, text in changes:
            print(f"{path}, behind line {line}: {text.strip()}")
        if not changes:
            print(f"{path} has all three changes.")
        elif not args.dry_run:
            write_source(path, changed)
            print("Changed; --undo takes the lines out.")
    except (EditError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)
    for line in report(path.parent):
        print(line)
    print("Train with the fork's own command: its first step says what was replaced, or why it cannot be.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
