"""A gallery of predictions: one HTML file with a thumbnail and the likeliest names of every image, to sort and to filter.

The file needs nothing but a browser, and may ask for nothing: a content security policy forbids the network, and any script
but the page's own, whatever the names of files and classes spell out.
"""

import base64
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from kdpl.common.files import atomic_write
from kdpl.common.images import to_rgb

THUMBNAIL = 192  # longest side in pixels
_TEMPLATE = Path(__file__).with_name("gallery.html")
_HARMLESS = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}  # a JSON string may hold them escaped: nothing then ends the script

Add = Callable[[str | os.PathLike, Sequence[str], Sequence[float], bytes], None]


@contextmanager
def write_gallery(path: str | os.PathLike, title: str = "Predictions") -> Iterator[Add]:
    """Write a gallery image by image; it is there when the `with` block ends, and not at all if the block fails.

    Yields:
        `add(path, names, probabilities, thumbnail)`: the image's path, its likeliest names with their probabilities, largest
        first, and what `thumbnail` returned. No image is held in memory.

    Raises:
        OSError: the file cannot be written; the previous version of `path` is untouched.
    """
    head, tail = _page()
    with atomic_write(path, "w") as file:

        def write_line(value: object) -> None:
            file.write(json.dumps(value).translate(_HARMLESS) + "\n")

        def add(image: str | os.PathLike, names: Sequence[str], probabilities: Sequence[float], picture: bytes) -> None:
            if not names:
                raise ValueError(f"'{os.fspath(image)}' has no name: expected at least one with its probability.")
            pairs = [[name, round(float(p), 6)] for name, p in zip(names, probabilities, strict=True)]
            write_line([os.fspath(image), pairs, f"data:image/webp;base64,{base64.b64encode(picture).decode()}"])

        file.write(head)
        write_line({"title": title})
        yield add
        file.write(tail)


def read_thumbnail(path: str | os.PathLike) -> bytes:
    """Return the thumbnail of an image file; a large JPEG is decoded at a fraction of its size, which is much quicker.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    with Image.open(path) as image:
        image.draft("RGB", (2 * THUMBNAIL, 2 * THUMBNAIL))
        return thumbnail(to_rgb(image))


def thumbnail(image: Image.Image) -> bytes:
    """Return an RGB image as a WebP file whose longest side is at most `THUMBNAIL` pixels."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    file = io.BytesIO()
    small.save(file, "webp", quality=75, method=2)
    return file.getvalue()


def _page() -> tuple[str, str]:
    """Return what stands before and after the data; the policy names the page's own script and style by their hashes."""
    page = _TEMPLATE.read_text(encoding="utf-8")
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.S)
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    policy = (
        f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    head, tail = page.replace("@POLICY@", policy).split("@DATA@\n")
    return head, tail


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
