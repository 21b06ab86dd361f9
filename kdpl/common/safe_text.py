"""Text of unknown origin: JSON and YAML that are too large, too deep or expand without end are refused, not tried, and no
terminal or spreadsheet takes orders from a name.
"""

import json
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import yaml

MAX_BYTES = 64 * 2**20
MAX_DEPTH = 100
MAX_ALIASES = 1000


# Controls, line and paragraph separators, and marks that turn the direction of writing.
_ORDERS = [*range(32), *range(127, 160), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A)]
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _ORDERS}
_ESCAPES_BUT_LINES = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\t\n\r"}
_FORMULA = re.compile(r"'*[=+\-@\t\r]")  # as a spreadsheet sees one, or one that was defused


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


def on_one_line(text: str) -> str:
    """Return text with control characters, line breaks and marks of direction escaped: a terminal would obey some of them."""
    return text.translate(_ESCAPES)


def printable(text: str) -> str:
    """Return the same of a text of several lines, which may have tabs too."""
    return text.translate(_ESCAPES_BUT_LINES)


def print_safely(stream: IO[str]) -> None:
    """Make an engine's logger write all text as `printable` returns it; a plain stream stays as it is."""
    write = stream.write
    with suppress(AttributeError):
        stream.write = lambda text: write(printable(text))


class _PrintableStream:
    """A text stream that writes what `printable` returns; in all else it is the stream that it is made from."""

    def __init__(self, stream: IO[str]):
        self._stream = stream

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def printable_output() -> Iterator[None]:
    """Print `printable` text alone inside, on the standard output and the standard error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_PrintableStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def to_cell(text: str) -> str:
    """Return text for a cell of a CSV file: a spreadsheet would run what begins like a formula, so that gets a quote first."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """Return the text of a cell that `to_cell` wrote; a formula that another program wrote is left as it is."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
