"""Class names in a text file, one a line."""

import codecs
import os
from pathlib import Path

from kdpl.common.messages import did_you_mean

REJECTED = "(none of these)"  # stands for the class of an image that is none of the classes


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Return the class names of a text file, one a line, in file order; blank lines are skipped.

    The file is UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text, is empty, or holds a name twice or a comment.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.txt")]
        raise FileNotFoundError(f"There is no class-name file '{path}'.{did_you_mean(path.name, near)}")
    names = [line.strip() for line in _text(path).split("\n") if line.strip()]
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


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        text = data.decode("utf-16" if data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig")
        if "\0" in text:
            raise ValueError("it has null characters")
    except ValueError as error:
        raise ValueError(f"'{path}' is not UTF-8 text ({error}): expected one class name per line. Save it as UTF-8.") from None
    return text
