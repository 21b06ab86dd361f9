"""The package as others get it: an sdist, the wheel that is built from it, and an environment in which it is installed."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from support import ROOT

FOLDERS = {"kdpl": "kdpl", "trainers": "kdpl/trainers", "datasets": "kdpl/datasets", "configs": "kdpl/configs"}
FILES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
LEFT_OUT = ("__pycache__", ".mypy_cache", "*.egg-info")


def build(folder: Path) -> tuple[Path, Path]:
    """Build an sdist of a copy of this checkout, tests included, and a wheel of what the sdist unpacks to; return both."""
    source = folder / "source"
    for name in (*FOLDERS, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in FILES:
        shutil.copy(ROOT / name, source)
    sdist = folder / _backend("build_sdist", source, folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    wheel = folder / _backend("build_wheel", folder / sdist.name.removesuffix(".tar.gz"), folder)
    shutil.rmtree(source)
    return sdist, wheel


def _backend(hook: str, source: Path, folder: Path) -> str:
    code = f"import setuptools.build_meta as b; print('BUILT', b.{hook}({str(folder)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.rpartition("BUILT ")[2].strip()


def environment(folder: Path, wheel: Path) -> Path:
    """Return the Python of a new environment that has the wheel; its other packages are those of this one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "-q", str(wheel)]
    subprocess.run(pip, check=True, cwd=folder)
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    others = [path for path in sys.path if Path(path).name == "site-packages"]
    Path(site, "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    return python


__all__ = ["FILES", "FOLDERS", "LEFT_OUT", "build", "environment"]
