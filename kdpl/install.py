"""Make a fork of CoOp know KDPL: `python -m kdpl.install PATH/TO/FORK` (docs/forks.md).

Makes three changes to the fork's `train.py`, and names its trainers that learn without labels then, and the packages that it
imports and that are not installed. Nothing of the fork is run: its own command is the trial.
"""

import argparse
import ast
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.common.environment import dassl_in_use
from kdpl.config.defaults import node_of

MARK = "  # by kdpl.install"
PACKAGES = {"cv2": "opencv-python", "ot": "pot", "sklearn": "scikit-learn", "pkg_resources": "'setuptools<70'"}
FOLDERS = ("trainers", "datasets", "clip", "utils")  # of a fork, beside its train.py
REGISTRY, STEP = "TRAINER_REGISTRY", "forward_backward"

Change = tuple[int, str]  # behind which line, counted from 1, and what is inserted there, with its indentation


def missing_changes(source: bytes, name: str = "train.py") -> list[Change]:
    """Return the changes that a `train.py` still needs, in the order of its lines; none if it has all.

    Raises:
        SyntaxError: it is not Python.
        ValueError: it calls neither extend_cfg(cfg) nor get_cfg_default().
    """
    tree = ast.parse(source, name)
    called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = next((node.lineno - 1 for node in imports if getattr(node, "module", "") != "__future__"), None)
    last = imports[-1].end_lineno if imports else tree.body[0].end_lineno if ast.get_docstring(tree) else 0
    changes = []
    if "kdpl.trainers" not in imported:
        changes.append((last if first is None else first, "import kdpl.trainers"))
    if "kdpl.trainers.offer_distilled" not in called:
        changes.append((last, "kdpl.trainers.offer_distilled()"))
    if "kdpl.extend_cfg" not in called:
        changes.append(_extension(tree, source, name))
    return changes


def _extension(tree: ast.Module, source: bytes, name: str) -> Change:
    """Return the call of kdpl.extend_cfg: behind `extend_cfg(cfg)`, or behind `cfg = get_cfg_default()` if there is none."""
    found: dict[str, tuple[ast.stmt, str]] = {}
    for node in ast.walk(tree):
        match node:
            case ast.Expr(ast.Call(of, [ast.Name(cfg), *_])) | ast.Assign([ast.Name(cfg)], ast.Call(of)):
                found.setdefault(ast.unparse(of).split(".")[-1], (node, cfg))
    node, cfg = found.get("extend_cfg") or found.get("get_cfg_default") or (None, "")
    if node is None:
        raise ValueError(
            f"'{name}' calls neither extend_cfg(cfg) nor get_cfg_default(): call kdpl.extend_cfg(cfg) by hand, where the "
            "configuration is built, before files are merged into it."
        )
    indentation = source.split(b"\n")[node.lineno - 1][: node.col_offset].decode()
    return node.end_lineno or 0, f"{indentation}kdpl.extend_cfg({cfg})"


def apply_changes(source: bytes, changes: list[Change]) -> bytes:
    """Return the file with each change on its own marked line; `without_changes` gives the same file back.

    Raises:
        SyntaxError: the result would not be Python, such as where statements share a line.
    """
    end = b"\r" if b"\r\n" in source else b""
    lines = source.split(b"\n")  # as `ast` counts them, unlike splitlines
    for line, text in sorted(changes, key=lambda change: change[0], reverse=True):
        lines.insert(line, f"{text}{MARK}".encode() + end)
    ast.parse(b"\n".join(lines), "train.py with the three lines")
    return b"\n".join(lines)


def without_changes(source: bytes) -> bytes:
    """Return the file without the marked lines."""
    return b"\n".join(line for line in source.split(b"\n") if not line.rstrip(b"\r").endswith(MARK.encode()))


def report(folder: Path) -> Iterator[str]:
    """Yield what the fork's code says of packages and trainers, in lines."""
    trees = []
    for path in (folder / "train.py", *(path for name in FOLDERS for path in sorted(folder.glob(f"{name}/**/*.py")))):
        with suppress(OSError, SyntaxError, ValueError):
            trees.append(ast.parse(path.read_bytes()))
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
    parser.add_argument("--undo", action="store_true", help="take the changes out again")
    args = parser.parse_args(argv)
    path = Path(args.fork) / "train.py"
    try:
        source = path.read_bytes()
        if args.undo:
            path.write_bytes(without_changes(source))
            print(f"'{path}' has no line of kdpl.install.")
            return 0
        changes = missing_changes(source, str(path))
        changed = apply_changes(source, changes)
        for line, text in changes:
            print(f"{path}, behind line {line}: {text.strip()}")
        path.write_bytes(changed)
        print("Changed; --undo takes the lines out." if changes else f"{path} has all three changes.")
    except (OSError, ValueError, SyntaxError) as error:
        return exits.report(error, exits.BAD_INPUT)
    for line in report(path.parent):
        print(line)
    print("Train with the fork's command; in its scripts only --trainer becomes KDPL_$TRAINER. Step 1 says what is replaced.")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
