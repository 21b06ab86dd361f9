"""Class names in a text file, one a line."""

import codecs
import os
import unicodedata
from pathlib import Path

from kdpl.common.messages import did_you_mean

HEADERS = frozenset(
    ("class", "classes", "classname", "classnames", "category", "categories", "label", "labels", "name", "names")
)
UTF16 = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def read_class_names(path: str | os.PathLike) -> list[str]:
    """Return the class names of a text file, one a line, in file order; blank lines are skipped.

    The file is UTF-8, with or without a byte order mark, or UTF-16 with one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not text, is empty, holds a name twice, or a header or a comment in place of a name.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        near = [p.name for p in path.parent.glob("*.txt")]
        raise FileNotFoundError(f"There is no class-name file '{path}'.{did_you_mean(path.name, near)}")
    names = [line.strip() for line in _text(path).split("\n") if line.strip()]
    if not names:
        raise ValueError(f"'{path}' is empty: expected one class name per line.")
    first: dict[str, str] = {}
    for place, name in enumerate(names):
        if any(unicodedata.category(character) == "Cc" for character in name):
            raise ValueError(f"'{path}' has control characters in {name[:40]!r}: expected one class name per line.")
        _refuse_comments(path, name, place)
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


def _refuse_comments(path: Path, name: str, place: int) -> None:
    if name.startswith("#"):
        raise ValueError(f"'{path}' has the comment {name[:40]!r}: remove it, every line stands for a class.")
    plain = name.replace("_", "").replace(" ", "").rstrip(":").casefold()
    if place == 0 and plain in HEADERS:
        raise ValueError(
            f"'{path}' begins with '{name}', which looks like a header: remove the line. Is it a class, move it below another."
        )
