"""Build the simulated card's library with the machine's C++ compiler, once for each of its sources and PyTorch's version."""

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent


class NoCompilerError(RuntimeError):
    """There is no C++ compiler to build the simulated card with."""


def compiler() -> str:
    """Return the path of a C++ compiler: $CXX, g++, clang++ or c++.

    Raises:
        NoCompilerError: there is none.
    """
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    raise NoCompilerError("no C++ compiler: install g++")


def library() -> Path:
    """Return the path of the library, which is built if this machine does not have it yet; that takes about a minute.

    Raises:
        NoCompilerError: there is no compiler.
        subprocess.CalledProcessError: the sources cannot be compiled for this PyTorch.
    """
    sources = [*sorted(HERE.glob("*.h")), HERE / "card.cpp"]
    texts = [file.read_bytes() for file in sources] + [importlib.metadata.version("torch").encode()]
    target = _cache() / f"card-{hashlib.sha256(b''.join(texts)).hexdigest()[:16]}{sysconfig.get_config_var('SHLIB_SUFFIX')}"
    if not target.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            built = Path(folder, target.name)
            _compile(sources[-1], built)
            os.replace(built, target)  # whole or not at all: several processes may build at once
    return target


def _compile(source: Path, target: Path) -> None:
    torch = Path(importlib.util.find_spec("torch").origin).parent
    includes = (f"-I{torch}/include", f"-I{torch}/include/torch/csrc/api/include")
    libraries = (f"-L{torch}/lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch}/lib")
    flags = ("-std=c++20", "-O1", "-shared", "-fPIC", "-w")
    subprocess.run([compiler(), *flags, *includes, str(source), *libraries, "-o", str(target)], check=True)


def _cache() -> Path:
    """Return the folder of built libraries: not that of KDPL_CACHE, which tests change."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home, "kdpl", "simulated_card")
