"""Photos in tar shards as WebDataset makes them, and in data sets of Hugging Face's `datasets`, beside those in folders.

A photo there is known by a path that leads into its shard, `photos-0003.tar/0017.jpg`, or to the row of a data set,
`hf:NAME:SPLIT/00000017`. Nothing is unpacked: a shard is read in place, by an index of its headers, and a data set by its
library, which maps it into memory. The names in a shard are names alone: no file is ever written or read by them.
"""

import importlib
import io
import os
import re
import sys
import tarfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

HEIF_SUFFIXES = frozenset({".heic", ".heif"})
SUFFIXES = HEIF_SUFFIXES.union(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

HUGGING_FACE = "hf:"
TAR = ".tar"
BLOCK = 512  # bytes of a tar file's headers
_PATTERN = re.compile(r"(?:^|(?<=/))[^/]*\{[^/]*\}[^/]*\.tar$")  # photos-{0000..0003}.tar
_OF_PATTERN = re.compile(r"(?:^|(?<=/))[^/]*\{[^/]*\}[^/]*\.tar/")


class SourceError(ValueError):
    """Shards or a data set cannot be used; the message says what to do."""


class Stamp(NamedTuple):
    """By what a photo that was not changed is known: numbers as of a file's status."""

    size: int
    mtime_ns: int  # of the file, of the shard, or a number that stands for a data set
    ctime_ns: int = 0


def is_source(place: str | os.PathLike) -> bool:
    """Whether photos are asked for in shards or a data set: `x.tar`, `x-{0..3}.tar`, `hf:NAME[:SPLIT]`."""
    text = os.fspath(place)
    return text.startswith(HUGGING_FACE) or bool(_PATTERN.search(text)) or (text.endswith(TAR) and os.path.isfile(text))


def is_inside(path: str | os.PathLike) -> bool:
    """Whether a path is that of a photo in a shard or a data set."""
    text = os.fspath(path)
    return isinstance(text, str) and (text.startswith(HUGGING_FACE) or _split(text) is not None)


def absolute(place: str | os.PathLike) -> Path:
    """Return where photos are, whatever the working directory will be."""
    text = os.fspath(place)
    if not text.startswith(HUGGING_FACE):
        return Path(os.path.abspath(os.path.expanduser(text)))
    name, split = _parts(text)
    return Path(f"{HUGGING_FACE}{os.path.abspath(name) if os.path.exists(name) else name}:{split}")


def photos_of(place: str | os.PathLike) -> tuple[list[Path], dict[Path, str], int]:
    """Return the photos of a source, what cannot be read with the reasons, and how many other members there are.

    Raises:
        SourceError: there are no such shards, or no such data set.
    """
    text = os.fspath(place)
    if text.startswith(HUGGING_FACE):
        place = absolute(text)
        return [place / f"{row:08d}" for row in range(len(_table(str(place))))], {}, 0
    if not _PATTERN.search(text):
        return in_shards(Path(text), [(Path(text), "")])
    expand = _library("webdataset").shardlists.expand_urls
    shards = [Path(shard) for shard in expand(text)]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise SourceError(f"There is no shard '{missing[0]}', one of {len(shards):,} of '{text}'.")
    return in_shards(Path(text), [(shard, shard.name) for shard in shards])


def in_shards(place: Path, shards: Iterable[tuple[Path, str]]) -> tuple[list[Path], dict[Path, str], int]:
    """As `photos_of`, of shards with their names below a place."""
    photos, unreadable, others = [], {}, 0
    for shard, name in shards:
        found = _shard(shard)
        photos += [place / name / photo for photo in found.photos]
        unreadable |= {place / name / member: f"'{place / name / member}' {why}" for member, why in found.unreadable.items()}
        others += found.others
    return photos, unreadable, others


def content(path: str | os.PathLike) -> bytes | None:
    """Return the bytes of a photo in a shard or a data set; None for a file.

    Raises:
        OSError, ValueError: it is not there, or cannot be read.
    """
    if not is_inside(path):
        return None
    text = os.fspath(path)
    if text.startswith(HUGGING_FACE):
        place, row = text.rsplit("/", 1)
        return _bytes_of(_table(place)[int(row)])
    shard, (begin, size) = _member(text)
    with open(shard, "rb") as file:
        return os.pread(file.fileno(), size, begin)


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a photo, as a file or in a shard or a data set."""
    if not is_inside(path):
        return os.path.isfile(path)
    try:
        return bool(stamp(path))
    except (OSError, ValueError):
        return False


def opened(path: str | os.PathLike) -> str | os.PathLike | io.BytesIO:
    """Return what Pillow opens a photo by."""
    data = content(path)
    return path if data is None else io.BytesIO(data)


def stamp(path: str | os.PathLike) -> Stamp:
    """Return the stamp of a photo, a file or not.

    Raises:
        OSError, ValueError: there is none.
    """
    if not is_inside(path):
        status = os.stat(path)
        return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
    text = os.fspath(path)
    if text.startswith(HUGGING_FACE):
        place, _, _ = text.rpartition("/")
        return Stamp(-1, int(_table(place)._fingerprint[:15], 16))
    shard, (_, size) = _member(text)
    status = os.stat(shard)
    return Stamp(size, status.st_mtime_ns, status.st_ctime_ns)


# ---------------------------------------------------------------------------------------------------------------- tar shards


class Shard:
    """The index of a tar file: where its photos are."""

    def __init__(self, path: str | os.PathLike):
        self.photos: dict[str, tuple[int, int]] = {}  # name: where its bytes begin, and how many there are
        self.unreadable: dict[str, str] = {}
        self.others = 0
        size = os.path.getsize(path)
        try:
            with tarfile.open(path, "r:") as archive:
                for member in archive:
                    name = _plain(member.name)
                    if os.path.splitext(name)[1].lower() not in SUFFIXES or name.rpartition("/")[2].startswith("."):
                        self.others += 1
                    elif not member.isreg() or member.sparse is not None:
                        self.unreadable[name] = "cannot be read as an image: it is a link, or has no content of its own."
                    elif name in self.photos:
                        self.unreadable[f"{name} again"] = "is in its shard twice: the first one counts."
                    elif member.offset_data + member.size > size:
                        self.unreadable[name] = "cannot be read as an image: its shard ends in the middle of it."
                    else:
                        self.photos[name] = member.offset_data, member.size
                end = archive.offset
        except (tarfile.TarError, OSError, ValueError) as error:
            self.unreadable["."] = f"is not a whole tar file ({error}). A compressed one must be unpacked first."
            return
        with open(path, "rb") as file:
            rest = os.pread(file.fileno(), BLOCK, end)
        if rest.strip(b"\0") or len(rest) < BLOCK:  # a tar file ends with blocks of zeros
            self.unreadable["."] = f"is damaged or cut off at byte {end:,}: what stands behind is not read."


def _plain(name: str) -> str:
    """Return the name of a member as a path that leads nowhere else: without a root, `.` and `..`."""
    unsafe = {"": "%2F", ".": "%2E", "..": "%2E%2E"}
    return "/".join(unsafe.get(part, part) for part in name.removeprefix("./").split("/"))


def _split(path: str) -> tuple[str, str] | None:
    """Return the file of a shard and the name of a member, of a path that leads into one; else None."""
    if f"{TAR}/" not in path:
        return None
    path = _OF_PATTERN.sub("", path, count=1)
    ends = (found.end() for found in re.finditer(rf"{re.escape(TAR)}/", path))
    return next(((path[: end - 1], path[end:]) for end in ends if os.path.isfile(path[: end - 1])), None)


def _member(path: str) -> tuple[str, tuple[int, int]]:
    """Return the file of a shard, and where in it a photo is.

    Raises:
        FileNotFoundError: it is not there.
    """
    shard, name = _split(path) or ("", "")
    try:
        return shard, _shard(shard).photos[name]
    except (KeyError, FileNotFoundError):
        raise FileNotFoundError(f"There is no photo '{path}'.") from None


def _shard(path: str | os.PathLike) -> Shard:
    status = os.stat(path)
    return _indexed(os.fspath(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=4096)
def _indexed(path: str, size: int, mtime_ns: int) -> Shard:
    return Shard(path)


# ------------------------------------------------------------------------------------------------------ Hugging Face datasets


def _parts(text: str) -> tuple[str, str]:
    """Return name and split of `hf:NAME[:SPLIT]`."""
    name, _, split = text.removeprefix(HUGGING_FACE).partition(":")
    return os.path.expanduser(name), split or "train"


@lru_cache(maxsize=8)
def _table(place: str) -> Any:
    """Return the column of images of a data set, whose rows are bytes or paths.

    Raises:
        SourceError: there is no such data set, or it has no column of images.
    """
    library, (name, split) = _library("datasets"), _parts(place)
    try:
        if os.path.isfile(name):
            found = library.load_dataset(Path(name).suffix.lstrip(".") or "parquet", data_files=name, split=split)
        elif os.path.isfile(os.path.join(name, "state.json")) or os.path.isfile(os.path.join(name, "dataset_dict.json")):
            found = library.load_from_disk(name)
            found = found[split] if isinstance(found, dict) else found
        elif os.path.isdir(name):
            files = sorted(map(str, Path(name).rglob("*.parquet")))
            how = ("parquet", {"data_files": files}) if files else ("imagefolder", {"data_dir": name, "drop_labels": True})
            found = library.load_dataset(how[0], split=split, **how[1])
        else:
            found = library.load_dataset(name, split=split)
    except Exception as error:  # the library's have no common class
        raise SourceError(f"'{place}' cannot be loaded as a data set ({type(error).__name__}: {error}).") from error
    kinds = found.features.items()
    column = next((c for c, kind in kinds if isinstance(kind, library.Image)), None)
    column = column or next((c for c, kind in kinds if isinstance(kind, dict) and "bytes" in kind), None)
    if column is None:
        raise SourceError(f"'{place}' has no column of images, but {', '.join(found.features)}.")
    return found.select_columns([column]).cast_column(column, library.Image(decode=False))


def _bytes_of(row: dict[str, Any]) -> bytes:
    (image,) = row.values()
    if image is None or (image.get("bytes") is None and not image.get("path")):
        raise ValueError("the row has no image")
    return image["bytes"] if image.get("bytes") is not None else Path(image["path"]).read_bytes()


def _library(name: str) -> Any:
    """Import a library, though a checkout of KDPL has a folder of the name `datasets`, which comes first where a script runs.

    Raises:
        SourceError: it is not installed, or the other one has been imported by its name.
    """
    here, before = Path(__file__).resolve().parents[2], sys.path[:]
    there = sys.modules.get(name)
    if there is not None and str(getattr(there, "__file__", "")).startswith(str(here / name)):
        raise SourceError(
            f"The module '{name}' is the folder '{here / name}' here, so that the library of that name cannot be loaded: "
            f"import KDPL's as kdpl.{name}."
        )
    try:
        sys.path[:] = [entry for entry in before if Path(entry or os.curdir).resolve() != here]
        return importlib.import_module(name)
    except ImportError as error:
        raise SourceError(f"This needs the package {name} ({error}): pip install 'kdpl[shards]'") from error
    finally:
        sys.path[:] = before
