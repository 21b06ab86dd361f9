"""Text of unknown origin: files are bounded, and no name or path gives a terminal, a log or a spreadsheet orders."""

import codecs
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from kdpl.common.messages import did_you_mean

MAX_BYTES = 64 * 2**20
REJECTED = "(none of these)"  # stands for the class of an image that is none of the classes

# Controls, line and paragraph separators, marks that turn the direction of writing, and what is no text in UTF-8.
_TURNS = [0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x2070)]
_ORDERS = [*range(32), *range(127, 160), *_TURNS, *range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000)]
_ESCAPES = {code: chr(code).encode("unicode_escape").decode() for code in _ORDERS}
_ESCAPES_BUT_LINES = {code: text for code, text in _ESCAPES.items() if chr(code) not in "\t\n\r"}
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # as a spreadsheet sees one, or one that was defused


class UnsafeTextError(ValueError):
    """A file is not a regular one, too large, or not of its format."""


def read_text(path: str | os.PathLike, limit: int = MAX_BYTES) -> str:
    """Return the content of a regular text file in UTF-8, or in UTF-16 with a byte order mark.

    Raises:
        FileNotFoundError: there is none.
        UnsafeTextError: it is a FIFO, socket, device or folder, is larger than `limit` bytes, or no such text.
    """
    path = Path(path)
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for a writer for ever
        raise UnsafeTextError(f"'{path}' is not a regular file.")
    with open(path, "rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise UnsafeTextError(f"'{path}' has more than {limit:,} bytes.")
    try:
        text = content.decode("utf-16" if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsafeTextError(f"'{path}' is not UTF-8 text ({error.reason}): save it as UTF-8.") from None
    if "\0" in text:
        raise UnsafeTextError(f"'{path}' is not UTF-8 text (it has null characters): save it as UTF-8.")
    return text


def read_json(path: str | os.PathLike, limit: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file; errors as for `read_text` and `parse_json`."""
    return parse_json(read_text(path, limit), f"'{path}'")


def parse_json(text: str, name: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        UnsafeTextError: it is not JSON, or nested thousands deep; `name` stands for it in the message.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsafeTextError(f"{name} is not JSON ({str(error).splitlines()[0]}).") from None


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Return the class names of a text file, one a line, in file order; blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text, is empty, or holds a name twice or a comment.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.txt")]
        raise FileNotFoundError(f"There is no class-name file '{path}'.{did_you_mean(path.name, near)}")
    names = [line.strip() for line in read_text(path).split("\n") if line.strip()]
    if not names:
        raise ValueError(f"'{path}' is empty: expected one class name per line.")
    first: dict[str, str] = {}
    for name in names:
        if name.startswith("#"):
            raise ValueError(f"'{path}' has the comment {name[:40]!r}: remove it, every line stands for a class.")
        in_prompt = " ".join(name.replace("_", " ").split())
        if in_prompt in first:
            raise ValueError(f"'{path}' has the class name '{name}' twice ('{first[in_prompt]}'): give every class one line.")
        first[in_prompt] = name
    return names


def on_one_line(text: str) -> str:
    """Return text with control characters, line breaks and marks of direction escaped: a terminal would obey some of them."""
    return text.translate(_ESCAPES)


def printable(text: str) -> str:
    """Return the same of a text of several lines, which may have tabs and returns too, as progress does."""
    return text.translate(_ESCAPES_BUT_LINES)


def to_cell(text: str) -> str:
    """Return text for a cell of a CSV file: a spreadsheet would run what begins like a formula, so that gets a quote first."""
    return f"'{text}" if _FORMULA.match(text) else text


def from_cell(cell: str) -> str:
    """Return the text of a cell that `to_cell` wrote; a formula that another program wrote is left as it is."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
