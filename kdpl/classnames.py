"""Class names in a text file, one a line."""

import os
import unicodedata
from pathlib import Path


class ClassNamesError(ValueError):
    """A file is no list of class names."""


def read_classnames(path: str | os.PathLike, what: str) -> list[str]:
    """Return the class names of a UTF-8 text file, one a line, in its order; blank lines are passed over.

    Args:
        what: the setting that names the file, for messages: "--classnames", "DATASET.CLASSNAMES".

    Raises:
        ClassNamesError: there is no such file, it is not UTF-8, holds no name, or one twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ClassNamesError(f"{what} '{path}' is not a file: expected a text file with one class name a line.")
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ClassNamesError(f"{what} '{path}' is not UTF-8 text (byte {error.start}): save it as UTF-8.") from None
    first_line: dict[str, int] = {}
    for number, name in enumerate(map(str.strip, lines), 1):
        if name and name in first_line:
            raise ClassNamesError(
                f"{what} '{path}' has '{name}' on lines {first_line[name]} and {number}: expected each name once. Remove one."
            )
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise ClassNamesError(
                f"{what} '{path}', line {number}: {name[:40]!r} has control characters. Expected a name alone."
            )
        if name:
            first_line[name] = number
    if not first_line:
        raise ClassNamesError(f"{what} '{path}' holds no name: expected one a line.")
    return list(first_line)
