"""Class names in a text file, one a line."""

import codecs
import os
from pathlib import Path

from kdpl.common.messages import did_you_mean

REJECTED = "(none of these)"  # stands for the class of an image that is none of the classes

UTF16 = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


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
    encoding = UTF16.get(data[:2], "utf-8-sig")
    if encoding == "utf-8-sig" and 0 in (data[:1] + data[1:2]) and len(data) % 2 == 0:
        raise ValueError(
            f"'{path}' looks like UTF-16 without a byte order mark: expected one class name per line. Save it as UTF-8."
        )
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        kind = "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
        raise ValueError(
            f"'{path}' is not {kind} text ({error.reason}): expected one class name per line. Save it as UTF-8."
        ) from None
