"""The environment of a result: versions, the commit, and which Dassl is in use."""

import os
import platform
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

PARENT = os.getppid()  # as early as possible: a launcher that dies leaves another one
VERSION = "0.2.0"  # of KDPL
PACKAGE = Path(__file__).resolve().parents[1]
BUNDLED_ENGINE = PACKAGE / "fallback"


def dassl_in_use() -> str:
    """Return one line naming the Dassl in use: the installed one or the bundled engine."""
    folder = Path(find_spec("dassl").origin).parent
    return "Dassl: bundled engine of KDPL" if folder.parent == BUNDLED_ENGINE else f"Dassl: installed, {folder}"


def versions() -> dict[str, str | None]:
    """Return the versions of Python, PyTorch, kdpl and Dassl ("bundled" for the bundled engine)."""
    bundled = "bundled" in dassl_in_use()
    return {
        "python": platform.python_version(),
        "torch": _version("torch"),
        "kdpl": VERSION,
        "dassl": "bundled" if bundled else _version("dassl"),
    }


@lru_cache
def git_state() -> str | None:
    """Return the short commit of kdpl's checkout, with "-dirty" if files were changed; None outside a checkout."""
    import subprocess

    root = PACKAGE.parent
    if not (root / ".git").exists():
        return None

    def git(*args: str) -> str:
        command = ["git", "-C", str(root), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        commit = git("rev-parse", "--short", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    from importlib import metadata  # slow to import, like subprocess above: `import kdpl` needs neither

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
