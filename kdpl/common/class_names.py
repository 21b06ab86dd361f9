"""Class names in a text file, one a line."""

import os
import unicodedata
from pathlib import Path

from kdpl.common.messages import did_you_mean


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Return the class names of a UTF-8 text file, one a line, in file order; blank lines are skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text, is empty, or holds a name twice.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.txt")] if path.parent.is_dir() else []
        raise FileNotFoundError(f"There is no class-name file '{path}'.{did_you_mean(path.name, near)}")
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f"'{path}' is not UTF-8 text ({error.reason}): expected one class name per line.") from None
    if not names:
        raise ValueError(f"'{path}' is empty: expected one class name per line.")
    first: dict[str, str] = {}
    for name in names:
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise ValueError(f"'{path}' has control characters in {name[:40]!r}: expected one class name per line.")
        in_prompt = " ".join(name.replace("_", " ").split())
        if in_prompt in first:
            raise ValueError(f"'{path}' has the class name '{name}' twice ('{first[in_prompt]}'): give every class one line.")
        first[in_prompt] = name
    return names
