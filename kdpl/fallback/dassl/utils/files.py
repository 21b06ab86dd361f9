"""Folders, JSON files and images."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

from kdpl.common.files import atomic_write
from kdpl.training.pixels import read_image

__all__ = ["check_isfile", "listdir_nohidden", "mkdir_if_missing", "read_image", "read_json", "write_json"]


def mkdir_if_missing(dirname: str | os.PathLike) -> None:
    """Make the folder `dirname` and its parents unless they exist."""
    Path(dirname).mkdir(parents=True, exist_ok=True)


def check_isfile(fpath: str | os.PathLike) -> bool:
    """Tell whether `fpath` is a file, with a warning when it is not."""
    is_file = os.path.isfile(fpath)
    if not is_file:
        warnings.warn(f"No file at '{fpath}'", stacklevel=2)
    return is_file


def listdir_nohidden(path: str | os.PathLike, sort: bool = False) -> list[str]:
    """Return the names in a folder that do not start with a dot, sorted if `sort`."""
    names = [name for name in os.listdir(path) if not name.startswith(".")]
    return sorted(names) if sort else names


def read_json(fpath: str | os.PathLike) -> Any:
    """Return what a JSON file holds.

    Raises:
        ValueError: the file is not valid JSON.
    """
    with open(fpath, encoding="utf-8") as file:
        try:
            return json.load(file)
        except ValueError as error:
            raise ValueError(f"'{fpath}' is not valid JSON ({error}). Delete it if it can be made again.") from error


def write_json(obj: Any, fpath: str | os.PathLike) -> None:
    """Write `obj` to a JSON file, making its folder if missing."""
    with atomic_write(fpath, "w") as file:
        json.dump(obj, file, indent=4)
