"""`import kdpl` is light, and finds the package from wherever it is called."""

import os
import shutil
import subprocess
import sys

import pytest
from support import ROOT, processes

CLONE = ("kdpl", "trainers", "datasets", "configs", "__init__.py", "setup.py", "pyproject.toml", "train.py")


def python(code: str, cwd, run=subprocess.run) -> str:
    """Run code in its own process, without this checkout's path, and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    process = run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd, env=environment, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of this checkout in a folder named `kdpl`."""
    folder = tmp_path_factory.mktemp("parent") / "kdpl"
    folder.mkdir()
    for name in CLONE:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, folder / name)
    return folder


def test_importing_kdpl_imports_no_pytorch():
    heavy = ("torch", "torchvision", "numpy", "open_clip", "clip", "PIL", "dassl")
    code = f"import sys, kdpl, kdpl.config.manifest, kdpl.config.command_line; print([n for n in {heavy} if n in sys.modules])"
    assert python(code, ROOT) == "[]"


@pytest.mark.slow
def test_a_clone_named_kdpl_is_imported_from_its_parent_folder(clone):
    code = """
import kdpl, kdpl.trainers, kdpl.trainers.baselines, kdpl.datasets, kdpl.common.outputs
print(kdpl.__version__, kdpl.load.__module__, kdpl.dassl_in_use()[:5])
print(kdpl.__file__, kdpl.trainers.__file__, kdpl.datasets.__file__, kdpl.common.outputs.__file__, sep="\\n")
"""
    first, *files = python(code, clone.parent, processes.run).splitlines()
    assert first.endswith("kdpl.classifier.classifier Dassl")
    inside = ("kdpl/__init__.py", "trainers/__init__.py", "datasets/__init__.py", "kdpl/common/outputs.py")
    assert files == [str(clone / path) for path in inside]
