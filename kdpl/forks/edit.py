"""The three changes that let KDPL work in a fork's `train.py`: made by its syntax, marked, and undone by the marks."""

import ast
import io
import os
import tokenize
from pathlib import Path
from typing import NamedTuple

from kdpl.common.files import atomic_write

MARK = "  # by kdpl.install"
BACKUP = ".before-kdpl"


class EditError(ValueError):
    """A `train.py` is missing, is not Python, or has no place for a change."""


class Change(NamedTuple):
    """A line to insert."""

    line: int  # behind this one of the file, counted from 1; 0: at its start
    text: str  # with its indentation


def read_source(path: Path) -> str:
    """Return a Python file's text with its line ends, as its encoding line says.

    Raises:
        EditError: there is no such file, or it cannot be decoded.
    """
    try:
        raw = path.read_bytes()
        return raw.decode(_encoding(raw))
    except FileNotFoundError:
        raise EditError(f"There is no '{path}': expected the folder of a fork of CoOp, with its train.py.") from None
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
    changes = []
    if "kdpl.trainers" not in imported:
        changes.append(Change(_before_imports(tree), "import kdpl.trainers"))
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    if "kdpl.trainers.offer_distilled" not in called:
        changes.append(Change(_behind_imports(tree), "kdpl.trainers.offer_distilled()"))
    if "kdpl.extend_cfg" not in called:
        changes.append(_extension(tree, source, name))
    return changes


def _before_imports(tree: ast.Module) -> int:
    """Return the line before the first statement that may stand behind `import kdpl.trainers`."""
    line, docstring = 0, ast.get_docstring(tree, clean=False)
    for i, node in enumerate(tree.body):
        if not (i == 0 and docstring is not None) and getattr(node, "module", "") != "__future__":
            first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
            return max(line, first - 1)
        line = node.end_lineno
    return line


def _behind_imports(tree: ast.Module) -> int:
    """Return the last line of the imports at the top level: whatever data sets the fork's modules import come first."""
    imports = [node.end_lineno for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imports[-1] if imports else _before_imports(tree)


def _extension(tree: ast.Module, source: str, name: str) -> Change:
    """Return the call of kdpl.extend_cfg: at the end of extend_cfg(cfg), or behind `cfg = get_cfg_default()`."""
    lines = source.split("\n")

    def call(line: int, like: ast.stmt, argument: str) -> Change:
        return Change(line, f"{lines[like.lineno - 1][: like.col_offset]}kdpl.extend_cfg({argument})")

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
    """Return the text with each change on its own line, with the file's own line ends.

    Raises:
        EditError: the result would not be Python, such as where statements share a line.
    """
    end = "\r\n" if "\r\n" in source else "\n"
    lines = [f"{line}\n" for line in source.split("\n")]  # as `ast` counts them, unlike str.splitlines
    lines[-1] = lines[-1][:-1]
    lines = lines if lines[-1] else lines[:-1]
    for change in sorted(changes, key=lambda c: c.line, reverse=True):
        if change.line and not lines[change.line - 1].endswith("\n"):
            lines[change.line - 1] += end
        lines.insert(change.line, f"{change.text}{MARK}{end}")
    changed = "".join(lines)
    try:
        ast.parse(changed)
    except SyntaxError as error:
        raise EditError(f"The changes do not fit into the file (line {error.lineno}): make them by hand.") from error
    return changed


def without_changes(source: str) -> str:
    """Return the text without the marked lines."""
    kept = [line for line in source.split("\n") if not line.rstrip("\r").endswith(MARK)]
    return "\n".join(kept)


def install(path: Path) -> Path:
    """Make the missing changes in a file, keep what it was beside it, and return the path of that copy."""
    source = read_source(path)
    changed, backup = apply_changes(source, missing_changes(source, str(path))), path.with_name(path.name + BACKUP)
    if not backup.exists():
        _write(backup, path.read_bytes(), path)
    _write(path, changed.encode(_encoding(path.read_bytes())), path)
    return backup


def undo(path: Path) -> str:
    """Take the marked lines out of a file and return what was done, in a line.

    The copy of the file is removed if it is the same again.
    """
    source, backup = read_source(path), path.with_name(path.name + BACKUP)
    restored = without_changes(source)
    if restored == source:
        return f"'{path}' has no line of kdpl.install."
    old = read_source(backup) if backup.exists() else None
    if old is not None and old.rstrip("\r\n") == restored.rstrip("\r\n"):
        _write(path, backup.read_bytes(), path)
        backup.unlink()
        return f"'{path}' is what it was before."
    _write(path, restored.encode(_encoding(path.read_bytes())), path)
    copy = f" What it was before is in '{backup}'." if old is not None else ""
    return f"The lines of kdpl.install are taken out of '{path}', which has other changes since.{copy}"


def _encoding(raw: bytes) -> str:
    """Return what a Python file says that it is encoded in; a byte order mark is part of it."""
    return tokenize.detect_encoding(io.BytesIO(raw).readline)[0]


def _write(path: Path, content: bytes, like: Path) -> None:
    mode = os.stat(like).st_mode
    with atomic_write(path) as file:
        file.write(content)
    os.chmod(path, mode)
