"""Random seeds, and what a run ran on."""

import os
import platform
import random

import numpy as np
import PIL
import torch
import torchvision


def set_random_seed(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, those of all GPUs included."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info() -> str:
    """Return the versions and devices that a result depends on, one to a line."""
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
