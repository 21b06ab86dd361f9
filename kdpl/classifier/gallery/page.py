"""The page of a gallery: a thumbnail and the likeliest names of every image, to sort, to filter, to check and to correct.

The file needs nothing but a browser, and fetches nothing: a content security policy forbids the network, and any script
but the page's own, whatever the names of files and classes spell out. It may show pictures that lie on the same disk.
"""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image

from kdpl.common import sources
from kdpl.common.images import cut_extreme, refuse_special_files, to_rgb

THUMBNAIL = 192  # longest side in pixels
UNREAD = "@UNREAD@"
_TEMPLATE = Path(__file__).with_name("page.html")
_HARMLESS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}  # a JSON string may hold them escaped: nothing then ends the script


def page_head(facts: Mapping[str, Any]) -> str:
    """Return what stands before the rows.

    Args:
        facts: `title`; `names`, all class names, so that predictions can be corrected; `order`, in which images are shown at
            first ("sure", "random", "next", ...), and `seed`, of the random one.
    """
    return _page()[0] + _line(facts)


def page_tail(unread: Mapping[str, str]) -> str:
    """Return what stands behind the rows; `unread` has the images that could not be read, with the reasons."""
    return _page()[1].replace(UNREAD, json.dumps(list(unread.items())).translate(_HARMLESS))


def row_line(
    image: str | os.PathLike, pairs: Sequence[tuple[str, float | None]], thumbnail: str, extras: Mapping[str, Any] | None = None
) -> str:
    """Return the line of an image.

    Args:
        pairs: likeliest names with their probabilities, best first; a name without a probability stands for a rejection.
        thumbnail: its address, `data_url` or a file relative to the page.
        extras: `full`, the address of the whole picture; `teacher`, the name that a teacher sees.
    """
    if not pairs:
        raise ValueError(f"'{os.fspath(image)}' has no name: expected at least one with its probability.")
    rounded = [[name, None if p is None else round(float(p), 6)] for name, p in pairs]
    return _line([os.fspath(image), rounded, thumbnail, *([extras] if extras else [])])


def data_url(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def _line(value: object) -> str:
    return json.dumps(value).translate(_HARMLESS) + "\n"


def read_thumbnail(path: str | os.PathLike) -> bytes:
    """Return the thumbnail of an image file; a large JPEG is decoded at a fraction of its size, which is much quicker.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    opened = sources.opened(path)
    if opened is path:
        refuse_special_files(path)
    with Image.open(opened) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        return thumbnail(cut_extreme(to_rgb(image)))


def thumbnail(image: Image.Image) -> bytes:
    """Return an RGB image as a WebP file whose longest side is at most `THUMBNAIL` pixels."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "webp", quality=75, method=2)
    return file.getvalue()


@cache
def _page() -> tuple[str, str]:
    """Return what stands before and after the data; the policy names the page's own script and style by their hashes."""
    page = _TEMPLATE.read_text(encoding="utf-8")
    for part in ("parts.css", "parts.js"):  # one file that needs no other
        text = _TEMPLATE.with_name(part).read_text(encoding="utf-8")
        page = page.replace(f"@{part.upper()}@", re.sub("^export ", "", text, flags=re.M))
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    policy = (
        f"default-src 'none'; img-src data: file: 'self'; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head, tail = page.replace("@POLICY@", policy).split("@DATA@\n")
    return head, tail


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
