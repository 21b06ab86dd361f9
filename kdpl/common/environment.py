"""The environment of a result: versions, commit, and which Dassl is in use."""

import platform
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

VERSION = "0.2.0"  # of KDPL
PACKAGE = Path(__file__).resolve().parents[1]
BUNDLED_ENGINE = PACKAGE / "fallback"
LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "open_clip_torch", "timm", "transformers")  # numbers come from them


def dassl_in_use() -> str:
    """Return one line naming the Dassl in use: the installed one or the bundled engine."""
    folder = Path(find_spec("dassl").origin).parent
    return "Dassl: bundled engine of KDPL" if folder.parent == BUNDLED_ENGINE else f"Dassl: installed, {folder}"


@lru_cache
def versions() -> dict[str, str | None]:
    """Return the versions of Python, KDPL, Dassl ("bundled" for the bundled engine) and the libraries; None without one."""
    dassl = "bundled" if "bundled" in dassl_in_use() else _version_of("dassl")
    found = {name: _version_of(name) for name in LIBRARIES}
    return {"python": platform.python_version(), "kdpl": VERSION, "dassl": dassl, **found}


@lru_cache
def git_state() -> str | None:
    """Return the short commit of kdpl's checkout, with "-dirty" if files were changed; None outside a checkout."""
    import subprocess

    if not (PACKAGE.parent / ".git").exists():
        return None
    command = ["git", "-C", str(PACKAGE.parent), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _version_of(package: str) -> str | None:
    from importlib import metadata  # slow to import, like subprocess above: `import kdpl` needs neither

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
