"""The gallery of `kdpl predict`: written image by image, with thumbnails inside the page or, of many images, beside it."""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from kdpl.classifier.gallery.page import data_url, page_head, page_tail, read_rows, read_thumbnail, row_line
from kdpl.classifier.predictions.files import Output
from kdpl.classifier.predictions.tables import Row, Writer, written
from kdpl.common.outputs import GALLERY, check_folder, take_folder
from kdpl.common.rows.digests import file_digest

INSIDE = 2000  # images whose thumbnails are inside the page; browsers load some hundred megabytes, and these are 20
IN_A_FOLDER = 1000


class GalleryWriter(Writer):
    """Rows as a gallery.

    Args:
        output: the page.
        title, names: of the page, and all class names.
        total: how many images there are; of more than `INSIDE` the thumbnails are files in a folder beside the page.
        unread: the images that cannot be read, with the reasons; it may grow until `finish`.
        top, workers: names shown of each image, and threads that make thumbnails.
        teacher: what a teacher sees on images, by the digests of their contents; where it differs, a label is worth most.
    """

    def __init__(
        self,
        output: Output,
        title: str,
        names: Sequence[str],
        total: int,
        unread: Mapping[str, str],
        top: int,
        workers: int,
        teacher: Mapping[str, str] | None = None,
    ):
        self.output, self.unread, self.top = output, unread, top
        self._teacher = {digest: name for digest, name in (teacher or {}).items() if name in set(names)}
        self._facts = {"title": title, "names": list(names), "order": "random", "seed": 1}
        self._folder = output.path.with_name(f"{output.path.stem}_files") if total > INSIDE and output.is_file else None
        if self._folder:
            check_folder(self._folder, GALLERY)
        self._pool = ThreadPoolExecutor(max(1, workers), "thumbnails")
        self._written = 0

    def begin(self) -> None:
        self.output.write(page_head(self._facts))

    def write(self, rows: Sequence[Row]) -> None:
        for row, picture in zip(rows, self._pool.map(_thumbnail, [row.path for row in rows]), strict=True):
            extras = {"full": self._address(row.path), **self._seen(row.path)}
            self.output.write(row_line(written(row.path), row.shown(self.top), self._place(picture), extras))

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
            relative = os.path.relpath(os.path.abspath(path), self.output.path.parent)
        except ValueError:  # another drive
            return Path(path).absolute().as_uri()
        return quote(os.fsencode(relative.replace(os.sep, "/")))

    def paths(self) -> Iterator[str]:
        with open(self.output.part, encoding="utf-8", newline="") as file:
            for path, *_ in read_rows(iter(file)):
                self._written += 1
                yield path

    def finish(self) -> None:
        self._pool.shutdown()
        self.output.write(page_tail(self.unread))
        super().finish()


def _thumbnail(path: str) -> bytes:
    """Return the thumbnail of an image; of one that is gone meanwhile nothing."""
    try:
        return read_thumbnail(path)
    except (OSError, ValueError, MemoryError):
        return b""
