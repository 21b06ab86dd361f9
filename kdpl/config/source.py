"""The code of a prompt learner from outside this package: its file, and the modules of its author's that it uses."""

import ast
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from kdpl.common.environment import PACKAGE
from kdpl.common.rows.digests import file_digest

FILE, MODULES = "learner's file", "learner's modules"  # in a manifest
_INSTALLED = tuple(
    os.path.realpath(sysconfig.get_path(name)) + os.sep for name in ("stdlib", "platstdlib", "purelib", "platlib")
)
_OTHERS = frozenset(("kdpl", "dassl", "clip", "open_clip", "torch", "torchvision", "trainers", "datasets"))


def learner_file(student: type) -> dict[str, Any]:
    """Return digests of the file of a learner from outside this package, and of the modules that it imports.

    Modules are followed from what the file imports, at its top or in a function, and from what it has the objects of. Those
    of Python, of installed packages and of this one are left out.
    """
    module = sys.modules[student.__module__]
    file = getattr(module, "__file__", None)
    if file is None or student.__module__.startswith("kdpl."):
        return {}
    used = {name: file_digest(path).hex()[:16] for name, path in sorted(_used_by(module).items())}
    return {FILE: file_digest(file).hex(), **({MODULES: used} if used else {})}


def _used_by(module: ModuleType) -> dict[str, str]:
    """Return the files of all own modules that a module uses, itself or by another one, by their names."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        for name in _imports(waiting.pop()):
            other = sys.modules.get(name)
            file = getattr(other, "__file__", None)
            if other is not None and other is not module and name not in found and file and _is_own(name, file):
                found[name] = file
                waiting.append(other)
    return found


def _imports(module: ModuleType) -> Iterator[str]:
    """Yield the names of what a module imports, as far as it may be loaded."""
    for value in list(vars(module).values()):
        name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
        if isinstance(name, str):
            yield name
    try:
        tree = ast.parse(Path(module.__file__).read_bytes())
    except (OSError, SyntaxError, ValueError):  # of a compiled module
        return
    package = module.__package__ or ""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (part for alias in node.names for part in _with_parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            name = ".".join([*above, *([node.module] if node.module else [])])
            yield from _with_parents(name)
            yield from (f"{name}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def _is_own(name: str, file: str) -> bool:
    path = os.path.realpath(file)
    installed = path.startswith(_INSTALLED) or {"site-packages", "dist-packages"} & {*Path(path).parts}
    return not (name.partition(".")[0] in _OTHERS or installed or path.startswith(f"{PACKAGE}{os.sep}"))
