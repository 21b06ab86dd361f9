"""Folders, JSON files, random seeds, and the environment of a run."""

import json
import os
import platform
import random
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
import torchvision

from kdpl.common.files import atomic_write


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Make the folder `dirname` and its parents unless they exist."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not start with a dot, sorted if `sort`."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    """Write `obj` to a JSON file, making its folder if missing."""
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4)


def tolist_if_not(x: Any) -> list:
    """Return `x` if it is a list, else a list of that one element."""
    return x if isinstance(x, list) else [x]


def set_random_seed(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, those of all GPUs included."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info() -> str:
    """Return the versions and devices that a result depends on, one a line."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    facts = {
        "PyTorch": torch.__version__,
        "torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda or "none",
        "cuDNN": torch.backends.cudnn.version() or "none",
        "GPUs": ", ".join(gpus) or "none",
        "CPU cores": os.cpu_count(),
        "NumPy": np.__version__,
        "Pillow": PIL.__version__,
        "Python": platform.python_version(),
        "OS": platform.platform(),
    }
    return "\n".join(f"{name}: {value}" for name, value in facts.items())
