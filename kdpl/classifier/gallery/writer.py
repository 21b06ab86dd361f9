"""The gallery of `kdpl predict`: written image by image, with thumbnails inside the page or, of many images, beside it."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO
from urllib.parse import quote

from kdpl.classifier.gallery.page import data_url, page_head, page_tail, read_thumbnail, row_line
from kdpl.classifier.predictions.tables import Row, Writer, written
from kdpl.common.files import file_digest
from kdpl.common.outputs import GALLERY, STANDARD_OUTPUT, check_folder, is_file, take_folder
from kdpl.common.sources import is_inside

INSIDE = 2000  # images whose thumbnails are inside the page; browsers load some hundred megabytes, and these are 20
IN_A_FOLDER = 1000


class GalleryWriter(Writer):
    """Rows as a gallery.

    Args:
        file, path: the page, open, and where it is given to be.
        title, names: of the page, and all class names.
        total: how many images there are; of more than `INSIDE` the thumbnails are files in a folder beside the page.
        unread: the images that cannot be read, with the reasons; it may grow until `finish`.
        top, workers: names shown of each image, and threads that make thumbnails.
        teacher: what a teacher sees on images, by the digests of their contents; where it differs, a label is worth most.
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
        teacher: Mapping[str, str] | None = None,
    ):
        self.file, self.unread, self.top = file, unread, top
        self._page = Path(os.path.realpath(path))
        self._teacher = {digest: name for digest, name in (teacher or {}).items() if name in set(names)}
        self._facts = {"title": title, "names": list(names), "order": "random", "seed": 1}
        self._folder = thumbnails_folder(path, total)
        self._pool = ThreadPoolExecutor(max(1, workers), "thumbnails")
        self._written = 0
        self.file.write(page_head(self._facts))

    def write(self, rows: Sequence[Row]) -> None:
        for row, picture in zip(rows, self._pool.map(_thumbnail, [row.path for row in rows]), strict=True):
            full = {} if is_inside(row.path) else {"full": self._address(row.path)}
            extras = full | self._seen(row.path)
            self.file.write(row_line(written(row.path), row.shown(self.top), self._place(picture), extras))

    def _seen(self, path: str) -> dict[str, str]:
        """Return what the teacher sees on an image; empty if that is not known."""
        if not self._teacher:
            return {}
        try:
            name = self._teacher.get(file_digest(path).hex())
        except OSError:  # gone meanwhile
            name = None
        return {"teacher": name} if name else {}

    def _place(self, picture: bytes) -> str:
        """Return the address of a thumbnail."""
        if self._folder is None:
            return data_url(picture)
        number, self._written = self._written, self._written + 1
        file = self._folder / f"{number // IN_A_FOLDER:04d}" / f"{number:07d}.webp"
        if number % IN_A_FOLDER == 0:
            take_folder(self._folder, GALLERY)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(picture)
        return quote(f"{self._folder.name}/{file.parent.name}/{file.name}")

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


def thumbnails_folder(path: str, total: int) -> Path | None:
    """Return the folder of the thumbnails of a page of so many images; None: they are inside the page.

    Raises:
        OutputError: it has files of others.
    """
    page = Path(os.path.realpath(path))
    if total <= INSIDE or path in STANDARD_OUTPUT or not is_file(page):
        return None
    folder = page.with_name(f"{page.stem}_files")
    check_folder(folder, GALLERY)
    return folder


def _thumbnail(path: str) -> bytes:
    """Return the thumbnail of an image; of one that is gone meanwhile nothing."""
    try:
        return read_thumbnail(path)
    except (OSError, ValueError, MemoryError):
        return b""
