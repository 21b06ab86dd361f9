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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import quote

from PIL import Image

from kdpl.common import sources
from kdpl.common.files import file_digest
from kdpl.common.images import cut_extreme, to_rgb
from kdpl.common.outputs import GALLERY, STANDARD_OUTPUT, is_file, take_folder

if TYPE_CHECKING:
    from kdpl.classifier.predictions import Row

INSIDE = 2000  # images whose thumbnails are inside the page; browsers load some hundred megabytes, and these are 20
THUMBNAIL = 192  # longest side in pixels
_TEMPLATE = Path(__file__).with_name("page.html")


def page_head(facts: Mapping[str, Any]) -> str:
    """Return what stands before the rows.

    Args:
        facts: `title`; `names`, all class names, so that predictions can be corrected; `order`, in which images are shown at
            first ("sure", "random", "next", ...), and `seed`, of the random one.
    """
    return _page()[0] + _line(facts)


def page_tail(unread: Mapping[str, str]) -> str:
    """Return what stands behind the rows; `unread` has the images that could not be read, with the reasons."""
    return _page()[1].replace("@UNREAD@", _line(list(unread.items())).strip())


def row_line(
    image: str, pairs: Sequence[tuple[str, float | None]], thumbnail: str, extras: Mapping[str, Any] | None = None
) -> str:
    """Return the line of an image.

    Args:
        pairs: likeliest names with their probabilities, best first; a name without a probability stands for a rejection.
        thumbnail: its address, `data_url` or a file relative to the page.
        extras: `full`, the address of the whole picture; `teacher`, the name that a teacher sees.
    """
    rounded = [[name, None if p is None else round(float(p), 6)] for name, p in pairs]
    return _line([image, rounded, thumbnail, *([extras] if extras else [])])


def data_url(picture: bytes) -> str:
    return f"data:image/webp;base64,{base64.b64encode(picture).decode()}"


def _line(value: object) -> str:
    """Return a value as JSON in which nothing ends the script that it is in."""
    return json.dumps(value).translate({ord(c): f"\\u{ord(c):04x}" for c in "<>&"}) + "\n"


def read_thumbnail(path: str | os.PathLike, side: int = THUMBNAIL) -> bytes:
    """Return the thumbnail of an image file; a large JPEG is decoded at a fraction of its size, which is much quicker.

    Raises:
        OSError, ValueError: the file cannot be read.
    """
    with Image.open(sources.opened(path)) as image:
        image.draft("RGB", (2 * side, 2 * side))
        return thumbnail(cut_extreme(to_rgb(image)), side)


def thumbnail(image: Image.Image, side: int = THUMBNAIL) -> bytes:
    """Return an RGB image as a WebP file whose longest side is at most `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side))
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


class GalleryWriter:
    """Rows as a gallery.

    Args:
        file, path: the page, open, and where it is given to be.
        title, names: of the page, and all class names.
        total: how many images there are; of more than `INSIDE` the thumbnails are files in a folder beside the page.
        unread: the images that cannot be read, with the reasons; it may grow until `finish`.
        top, workers: names shown of each image, and threads that make thumbnails.
        teacher: what a teacher sees on images, by the digests of their contents; where it differs, a label is worth most.

    Raises:
        OutputError: the folder of the thumbnails has files of others.
    """

    def __init__(
        self,
        file: IO[str],
        path: str,
        title: str,
        names: Sequence[str],
        total: int,
        unread: Mapping[str, str],
        top: int,
        workers: int,
        teacher: Mapping[str, str],
    ):
        self.file, self.unread, self.top = file, unread, top
        self._page = Path(os.path.realpath(path))
        self._teacher = {digest: name for digest, name in teacher.items() if name in set(names)}
        self._folder = None
        if total > INSIDE and path not in STANDARD_OUTPUT and is_file(self._page):
            self._folder = take_folder(self._page.with_name(f"{self._page.stem}_files"), GALLERY)
        self._pool = ThreadPoolExecutor(max(1, workers), "thumbnails")
        self._written = 0
        self.file.write(page_head({"title": title, "names": list(names), "order": "random", "seed": 1}))

    def write(self, rows: Sequence["Row"]) -> None:
        for row, picture in zip(rows, self._pool.map(_thumbnail, [row.path for row in rows]), strict=True):
            extras = {} if sources.is_inside(row.path) else {"full": self._address(row.path)}
            with suppress(OSError):  # gone meanwhile
                if self._teacher and (name := self._teacher.get(file_digest(row.path).hex())):
                    extras["teacher"] = name
            path = row.path.encode("utf-8", "backslashreplace").decode()
            self.file.write(row_line(path, row.shown(self.top), self._place(picture), extras))

    def _place(self, picture: bytes) -> str:
        """Return the address of a thumbnail."""
        if self._folder is None:
            return data_url(picture)
        self._written += 1
        file = self._folder / f"{self._written:07d}.webp"
        file.write_bytes(picture)
        return quote(f"{self._folder.name}/{file.name}")

    def _address(self, path: str) -> str:
        """Return the address of a picture, relative to the page if both are on one disk."""
        try:
            relative = os.path.relpath(os.path.abspath(path), self._page.parent)
        except ValueError:  # another drive
            return Path(path).absolute().as_uri()
        return quote(os.fsencode(relative.replace(os.sep, "/")))

    def finish(self) -> None:
        self._pool.shutdown()
        self.file.write(page_tail(self.unread))


def _thumbnail(path: str) -> bytes:
    """Return the thumbnail of an image; of one that is gone meanwhile nothing."""
    try:
        return read_thumbnail(path)
    except (OSError, ValueError, MemoryError):
        return b""
