"""Registries, random seeds, the log, and what else is imported from here."""

import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch.utils import collect_env
from yacs.config import CfgNode

from kdpl.common.messages import did_you_mean
from kdpl.config.keys import check_choice
from kdpl.training.batches import read_image  # noqa: F401  part of the interface
from kdpl.training.checkpoint import load_checkpoint  # noqa: F401  part of the interface


class Registry:
    """A table from names to the classes or functions that were registered under them; its own name is for messages."""

    def __init__(self, name: str):
        self.name = name
        self._objects: dict[str, Any] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Register `obj` under its `__name__`; without `obj`, return a decorator that does so.

        Raises:
            KeyError: the name is taken and `force` is False.
        """
        if obj is None:
            return lambda decorated: self.register(decorated, force)
        name = obj.__name__
        if name in self._objects and not force:
            raise KeyError(
                f"{self.name} '{name}' is registered already, by module {self._objects[name].__module__}. "
                "Choose another name, or pass force=True to replace it."
            )
        self._objects[name] = obj
        return obj

    def get(self, name: str) -> Callable:
        """Return what is registered under `name`, or raise a KeyError that suggests the closest name."""
        if name not in self._objects:
            closest = did_you_mean(name, self._objects)
            raise KeyError(f"{self.name} '{name}' is not registered.{closest} Import the module that registers it first.")
        return self._objects[name]

    def registered_names(self) -> list[str]:
        """Return all names, in the order of their registration."""
        return list(self._objects)


def build_registered(registry: Registry, key: str, cfg: CfgNode, **kwargs: Any) -> Any:
    """Return what `registry` has under the name that a key such as "TRAINER.NAME" of `cfg` holds, called with `cfg`."""
    node, leaf = key.split(".")
    name = cfg[node][leaf]
    check_choice(key, name, registry.registered_names())
    if cfg.VERBOSE:
        print(f"Loading {registry.name.lower()}: {name}")
    return registry.get(name)(cfg, **kwargs)


def set_random_seed(seed: int) -> None:
    """Seed Python's, NumPy's and PyTorch's generators, those of all GPUs included."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def collect_env_info() -> str:
    """Return PyTorch's report of versions and devices."""
    return collect_env.get_pretty_env_info()


class Logger:
    """A text stream that writes to the terminal and to a file, which must not exist yet."""

    def __init__(self, fpath: str | os.PathLike):
        # A second logger takes the first one's place: lines of the new run do not belong in the old run's file.
        self.console: IO[str] = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        Path(fpath).parent.mkdir(parents=True, exist_ok=True)
        # Line-buffered, so that the lines before a crash are on disk.
        self.file: IO[str] = open(fpath, "x", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, text: str) -> int:
        try:
            self.file.write(text)
        except OSError as error:  # a full disk, say: a log is not worth a run
            path, self.file = self.file.name, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            self.console.write(f"'{path}' ends here, because it cannot be written any more: {error}\n")
        return self.console.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.console.flush()

    def __getattr__(self, name: str):
        if name == "console":
            raise AttributeError(name)
        return getattr(self.console, name)  # encoding, isatty, fileno, ...


def setup_logger(output: str | os.PathLike | None = None) -> None:
    """Copy everything printed from now on to `log.txt` in a folder; if there is one, the new name is followed by the time."""
    if output is None:
        return
    path = Path(output, "log.txt")
    stamped = path.with_name(path.name + time.strftime("-%Y-%m-%d-%H-%M-%S"))
    while path.exists():
        path, stamped = stamped, stamped.with_name(stamped.name + "-1")
    sys.stdout = Logger(path)
