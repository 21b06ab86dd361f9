"""Image files below a folder, whatever else lies there: loops, FIFOs and unreadable folders stop nothing."""

import os
import re
import stat
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

from kdpl.common.files import RECORD

HEIF_SUFFIXES = frozenset({".heic", ".heif"})
SUFFIXES = HEIF_SUFFIXES.union(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
MEDIA = frozenset(  # pictures and films that people have and that are not read
    (
        ".3gp", ".arw", ".avi", ".cr2", ".cr3", ".dng", ".eps", ".jxl", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg",
        ".mts", ".nef", ".orf", ".pef", ".psd", ".raf", ".raw", ".rw2", ".srw", ".svg", ".webm", ".wmv",
    )
)  # fmt: skip
KINDS = (
    (stat.S_ISDIR, "it is a folder"),
    (stat.S_ISFIFO, "it is a FIFO (named pipe)"),
    (stat.S_ISSOCK, "it is a socket"),
    (stat.S_ISCHR, "it is a device"),
    (stat.S_ISBLK, "it is a device"),
)


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        images: regular files with the suffix of an image, or without a suffix and with the first bytes of a JPEG or PNG.
        others: how many entries are passed over: hidden ones, files of other suffixes, links to folders listed already.
        media: how many of the others are pictures or films of a kind that is not read, by suffix.
        unreadable: entries that should be read and cannot be, each with the reason.
    """

    images: list[Path] = field(default_factory=list)
    others: int = 0
    media: Counter[str] = field(default_factory=Counter)
    unreadable: dict[Path, str] = field(default_factory=dict)


def list_images(folder: str | os.PathLike, natural: bool = False) -> Listing:
    """Return what lies at any depth below a folder; every folder is listed once, also if links lead to it.

    Images are recognised by their suffix. A hidden entry, whose name begins with a dot, counts as one other file.

    Args:
        natural: sort "img_2" before "img_10"; by default paths are sorted by code points.

    Raises:
        OSError: `folder` itself cannot be listed.
    """
    listing, folder = Listing(), Path(folder)
    seen: set[tuple[int, int]] = set()  # device and inode of the folders
    waiting, links = deque([folder]), deque()  # links last: a folder is listed under its own path
    while waiting or links:
        current = (waiting or links).popleft()
        try:
            status = os.stat(current)
            if (status.st_dev, status.st_ino) in seen:
                listing.others += 1
                continue
            with os.scandir(current) as entries:
                found = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                raise
            listing.unreadable[current] = f"'{current}' cannot be listed: {error.strerror}."
            continue
        seen.add((status.st_dev, status.st_ino))
        if current != folder and any(entry.name == RECORD for entry in found):
            listing.others += 1  # what a command has written, such as the thumbnails of a gallery, are no photos
            continue
        for entry in found:
            _sort_in(entry, current / entry.name, listing, waiting, links)
    listing.images.sort(key=natural_key if natural else lambda path: path.parts)
    return listing


def _sort_in(entry: os.DirEntry, path: Path, listing: Listing, waiting: deque[Path], links: deque[Path]) -> None:
    suffix = path.suffix.lower()
    if entry.name.startswith("."):
        listing.others += 1
        return
    try:
        mode = entry.stat().st_mode
    except OSError as error:  # a broken link, or one that leads to itself
        if suffix in SUFFIXES or entry.is_symlink():
            listing.unreadable[path] = f"'{path}' cannot be read: {_reason(entry, error)}."
        else:
            listing.others += 1
        return
    if stat.S_ISDIR(mode):
        (links if entry.is_symlink() else waiting).append(path)
    elif stat.S_ISREG(mode) and (suffix in SUFFIXES or (not suffix and _begins_like_an_image(path))):
        listing.images.append(path)
    elif suffix in SUFFIXES:
        listing.unreadable[path] = f"'{path}' cannot be read as an image: {kind_of(mode)}."
    else:
        listing.others += 1
        if suffix in MEDIA:
            listing.media[suffix] += 1


def _begins_like_an_image(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
    except OSError:
        return False


def _reason(entry: os.DirEntry, error: OSError) -> str:
    if isinstance(error, FileNotFoundError) and entry.is_symlink():
        return "it is a link to a file that does not exist"
    return str(error.strerror or type(error).__name__).lower()


def kind_of(mode: int) -> str:
    """Return what a file is that is not a regular one, from its mode; empty for a regular file."""
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), "")


def natural_key(path: str | os.PathLike) -> list[list[tuple[bool, int, str]]]:
    """Return a key by which paths are sorted as people count: "img_2" before "img_10"."""
    return [
        [(False, int(p), "") if p.isdecimal() else (True, 0, p.casefold()) for p in re.split(r"(\d+)", part) if p]
        for part in Path(path).parts
    ] + [[(True, 0, os.fspath(path))]]


def media_line(media: Counter[str]) -> str:
    """Return one line about pictures and films that are not read, "5 .CR2, 2 .MOV"; empty if there are none."""
    return ", ".join(f"{count:,} {suffix.upper()}" for suffix, count in sorted(media.items()))
