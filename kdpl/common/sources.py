"""Photos in tar shards as WebDataset makes them, and in data sets of Hugging Face's `datasets`, beside those in folders.

A photo there is known by a path that leads into its shard, `photos-0003.tar/0017.jpg`, or to the row of a data set,
`hf:NAME:SPLIT/00000017`. Nothing is unpacked: a shard is read in place, by an index of its headers, and a data set by its
library, which maps it into memory. The names in a shard are names alone: no file is ever written or read by them.
"""

import importlib
import io
import logging
import os
import posixpath
import re
import stat
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from kdpl.common.messages import short_reason

HEIF_SUFFIXES = frozenset({".heic", ".heif"})
SUFFIXES = HEIF_SUFFIXES.union(
    (".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpeg", ".jpg", ".mpo", ".png", ".ppm", ".tif", ".tiff", ".webp")
)

HUGGING_FACE = "hf:"
TAR = ".tar"
_PATTERN = re.compile(r"(?:^|(?<=/))[^/]*\{[^/]*\}[^/]*\.tar(?:/|$)")  # photos-{0000..0003}.tar


class SourceError(ValueError):
    """Shards or a data set cannot be used; the message says what to do."""


Found = tuple[list[Path], dict[Path, str], Counter[str]]  # photos; what cannot be read, with the reasons; others by suffix


def is_source(place: str | os.PathLike) -> bool:
    """Whether photos are asked for in shards or a data set: `x.tar`, `x-{0..3}.tar`, `hf:NAME[:SPLIT]`."""
    text = os.fspath(place)
    return text.startswith(HUGGING_FACE) or (text.endswith(TAR) and bool(_PATTERN.search(text) or os.path.isfile(text)))


def is_inside(path: str | os.PathLike) -> bool:
    """Whether a path is that of a photo in a shard or a data set."""
    text = os.fspath(path)
    return isinstance(text, str) and (text.startswith(HUGGING_FACE) or _split(text) is not None)


def absolute(place: str | os.PathLike) -> Path:
    """Return where photos are, whatever the working directory will be."""
    text = os.fspath(place)
    if not text.startswith(HUGGING_FACE):
        return Path(os.path.abspath(os.path.expanduser(text)))
    name, split = _name_and_split(text)
    return Path(f"{HUGGING_FACE}{os.path.abspath(name) if os.path.exists(name) else name}:{split}")


def photos_of(place: str | os.PathLike) -> Found:
    """Return the photos of a source; a SourceError names it if there is none."""
    text = os.fspath(place)
    if text.startswith(HUGGING_FACE):
        place = absolute(text)
        return [place / f"{row:08d}" for row in range(len(_table(str(place))))], {}, Counter()
    if not _PATTERN.search(text):
        return in_shards(Path(text), [(Path(text), "")])
    shards = [Path(shard) for shard in _library("webdataset").shardlists.expand_urls(text)]
    if missing := [shard for shard in shards if not shard.is_file()]:
        raise SourceError(f"There is no shard '{missing[0]}', one of {len(shards):,} of '{text}'.")
    return in_shards(Path(text), [(shard, shard.name) for shard in shards])


def in_shards(place: Path, shards: Iterable[tuple[Path, str]]) -> Found:
    """Return the photos of shards, given with their names below a place."""
    photos, unreadable, others = [], {}, Counter()
    for shard, name in shards:
        inside, problems, rest = _index(os.fspath(shard), *stamp(shard)[:2])
        photos += [place / name / photo for photo in inside]
        unreadable |= {place / name / member: f"'{place / name / member}' {why}" for member, why in problems.items()}
        others += rest
    return photos, unreadable, others


def content(path: str | os.PathLike) -> bytes:
    """Return the bytes of a photo, a file or not.

    Raises:
        OSError, ValueError: it is not there, or cannot be read.
    """
    text = os.fspath(path)
    if not is_inside(path):
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for ever
            raise ValueError("it is a folder" if os.path.isdir(path) else "it is not a regular file")
        return Path(path).read_bytes()
    if text.startswith(HUGGING_FACE):
        place, _, row = text.rpartition("/")
        (image,) = _table(place)[int(row)].values()
        if image is None or not (image.get("bytes") or image.get("path")):
            raise ValueError("its row has no image")
        return image.get("bytes") or Path(image["path"]).read_bytes()
    shard, (begin, size) = _member(text)
    with open(shard, "rb") as file:
        return os.pread(file.fileno(), size, begin)


def opened(path: str | os.PathLike) -> str | os.PathLike | io.BytesIO:
    """Return what Pillow opens a photo by; errors as for `content`."""
    is_file = not is_inside(path) and stat.S_ISREG(os.stat(path).st_mode)
    return path if is_file else io.BytesIO(content(path))


def exists(path: str | os.PathLike) -> bool:
    """Whether there is a photo, as a file or in a shard or a data set."""
    try:
        return bool(stamp(path))
    except (OSError, ValueError):
        return False


def stamp(path: str | os.PathLike) -> tuple[int, int, int]:
    """Return a photo's size and times of modification and change, the latter of its shard, or a number for its data set.

    Once the photo has changed, they are others. Errors as for `content`.
    """
    text = os.fspath(path)
    if text.startswith(HUGGING_FACE):
        return -1, int(_table(text.rpartition("/")[0])._fingerprint[:15], 16), 0
    file, (_, size) = _member(text) if is_inside(path) else (path, (0, None))
    status = os.stat(file)
    return status.st_size if size is None else size, status.st_mtime_ns, status.st_ctime_ns


@lru_cache(maxsize=4096)
def _index(path: str, size: int, mtime_ns: int) -> tuple[dict[str, tuple[int, int]], dict[str, str], Counter[str]]:
    """Return where the bytes of a tar file's photos begin and how many there are, what cannot be read, and the others."""
    photos, unreadable, others = {}, {}, Counter()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = posixpath.normpath(member.name)
                suffix = posixpath.splitext(name)[1].lower()
                if suffix not in SUFFIXES or posixpath.basename(name).startswith("."):
                    others[suffix] += 1
                elif name.startswith(("/", "../")):
                    unreadable[name.lstrip("/.")] = "is not read: its name in the shard leads out of it."
                elif not member.isreg() or member.sparse is not None or member.offset_data + member.size > size:
                    unreadable[name] = "cannot be read as an image: it is a link, or its shard ends in the middle of it."
                elif name in photos:
                    unreadable[f"{name} again"] = "is in its shard twice: the first one counts."
                else:
                    photos[name] = member.offset_data, member.size
            end = archive.offset
        with open(path, "rb") as file:
            rest = os.pread(file.fileno(), tarfile.BLOCKSIZE, end)
        if rest.strip(b"\0") or len(rest) < tarfile.BLOCKSIZE:  # a tar file ends with blocks of zeros
            unreadable["."] = f"is damaged or cut off at byte {end:,}: what stands behind is not read."
    except (tarfile.TarError, OSError, ValueError) as error:
        unreadable["."] = f"is not a whole tar file ({error}). A compressed one must be unpacked first."
    return photos, unreadable, others


def _split(path: str) -> tuple[str, str] | None:
    """Return the file of a shard and the name of a member, of a path that leads into one; else None."""
    path = _PATTERN.sub("", path, count=1)
    ends = (found.end() for found in re.finditer(re.escape(f"{TAR}/"), path))
    return next(((path[: end - 1], path[end:]) for end in ends if os.path.isfile(path[: end - 1])), None)


def _member(path: str) -> tuple[str, tuple[int, int]]:
    """Return the file of a shard, and where in it a photo is; a FileNotFoundError if it is not there."""
    shard, name = _split(path) or ("", "")
    photos = _index(shard, *stamp(shard)[:2])[0] if shard else {}
    if name not in photos:
        raise FileNotFoundError(f"There is no photo '{path}'.")
    return shard, photos[name]


def _name_and_split(text: str) -> tuple[str, str]:
    """Return the two of `hf:NAME[:SPLIT]`."""
    name, _, split = text.removeprefix(HUGGING_FACE).partition(":")
    return os.path.expanduser(name), split or "train"


@lru_cache(maxsize=8)
def _table(place: str) -> Any:
    """Return the column of images of a data set, whose rows are bytes or paths.

    NAME is a file, such as one of parquet; a folder, saved by `save_to_disk`, or of such files or of images; or on the Hub.

    Raises:
        SourceError: there is no such data set, or it has no column of images.
    """
    library, (name, split) = _library("datasets"), _name_and_split(place)
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of each of its attempts to reach the Hub
    try:
        if os.path.isfile(name):
            data = library.load_dataset(Path(name).suffix.lstrip(".") or "parquet", data_files=name, split=split)
        elif any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")):
            saved = library.load_from_disk(name)
            data = saved[split] if isinstance(saved, dict) else saved
        else:
            data = library.load_dataset(name, split=split)
    except Exception as error:  # the library's have no common class
        raise SourceError(f"'{place}' cannot be loaded as a data set ({short_reason(error)}).") from error
    kinds = data.features.items()
    column = next((c for c, kind in kinds if isinstance(kind, library.Image)), None)
    column = column or next((c for c, kind in kinds if isinstance(kind, dict) and "bytes" in kind), None)
    if column is None:
        raise SourceError(f"'{place}' has no column of images, but {', '.join(data.features)}.")
    return data.select_columns([column]).cast_column(column, library.Image(decode=False))


def _library(name: str) -> Any:
    """Import a library, though a checkout of KDPL or a fork has a folder of the name `datasets` where a script runs."""
    before = sys.path[:]
    try:
        sys.path[:] = [entry for entry in before if not Path(entry, name).is_dir() or Path(entry).name.endswith("-packages")]
        library = importlib.import_module(name)
    except ImportError as error:
        raise SourceError(f"This needs the package {name} ({error}): pip install 'kdpl[shards]'") from error
    finally:
        sys.path[:] = before
    return library
