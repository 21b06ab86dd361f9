"""Reading JSON and YAML of unknown origin: what is too large, too deep or expands without end is refused, not tried."""

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100
MAX_ALIASES = 1000


class UnsafeTextError(ValueError):
    """A file is not regular, too large, nested too deeply, or repeats itself by aliases."""


def read_text(path: str | os.PathLike, limit: int = MAX_BYTES) -> str:
    """Return the content of a regular UTF-8 text file.

    Raises:
        FileNotFoundError: there is none.
        UnsafeTextError: it is a FIFO, socket, device or folder, is larger than `limit` bytes, or not UTF-8.
    """
    path = Path(path)
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode):  # opening a FIFO would wait for a writer for ever
        raise UnsafeTextError(f"'{path}' is not a regular file.")
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnsafeTextError(f"'{path}' has more than {limit:,} bytes.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsafeTextError(f"'{path}' is not UTF-8 text ({error.reason}).") from None


def read_json(path: str | os.PathLike, limit: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        FileNotFoundError: there is none.
        UnsafeTextError: as `read_text`; or it is not JSON, nested thousands deep or with integers of thousands of digits.
    """
    return parse_json(read_text(path, limit), f"'{path}'")


def parse_json(text: str, name: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        UnsafeTextError: see `read_json`; `name` stands for the text in the message.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error).splitlines()[0]
        raise UnsafeTextError(f"{name} is not JSON ({reason}).") from None


def parse_yaml(text: str, name: str, loader: type) -> Any:
    """Return the value of a YAML text.

    Args:
        name: stands for the text in messages.
        loader: a safe loader class of PyYAML.

    Raises:
        UnsafeTextError: it is nested more than `MAX_DEPTH` deep, or has more than `MAX_ALIASES` aliases or nested ones, so that
            a small text could stand for a huge value.
        yaml.YAMLError: it is not YAML.
    """
    depth, aliases, inside_anchor = 0, 0, []
    for event in yaml.parse(text, loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            inside_anchor.append(event.anchor is not None)
            if depth > MAX_DEPTH:
                raise UnsafeTextError(f"{name} is nested more than {MAX_DEPTH} levels deep.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
            inside_anchor.pop()
        elif isinstance(event, yaml.AliasEvent):
            aliases += 1
            if aliases > MAX_ALIASES or any(inside_anchor):
                raise UnsafeTextError(f"{name} has aliases within aliases, or more than {MAX_ALIASES} of them.")
    return yaml.load(text, loader)
