"""Unpack archives from elsewhere: nothing is written outside the target folder, and no more than is plausible."""

import bz2
import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

from kdpl.common.files import NoRoomError
from kdpl.common.messages import short_reason

MAX_RATIO = 30  # images hardly compress; the lists and label maps that come with them do, by about ten
MIN_LIMIT = 64 * 2**20  # bytes that an archive may unpack to however small it is
MAX_MEMBERS = 500_000
MAX_DIRECTORY = 64 * 2**20  # bytes of a zip archive's list of members

_DECOMPRESSORS = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ\x00", lzma.open))


class ArchiveError(ValueError):
    """An archive is unsafe to unpack, or damaged."""


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, the latter possibly compressed."""
    if zipfile.is_zipfile(path):
        return True
    try:
        with path.open("rb") as raw, _decompressed(raw) as stream:
            tarfile.TarInfo.frombuf(stream.read(512), "utf-8", "surrogateescape")
            return True
    except Exception:  # of many kinds, from inside the decompressors
        return False


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive, recognised by its contents, into an empty folder.

    Only plain files and folders are made. A link inside a tar archive becomes a copy of the file it points to, which
    must be in the same archive. After an error the folder holds what was unpacked until then.

    Raises:
        ArchiveError: a member has an absolute path, a `..`, or is a link that leads outside, a device, encrypted; the
            contents are implausibly large for the size of the archive; the archive is damaged or is none.
        NoRoomError: the contents are larger than the room on the disk.
        OSError: the files cannot be written.
    """
    folder = folder.resolve()  # as the filter of tarfile has it
    try:
        if zipfile.is_zipfile(archive):
            _unpack_zip(archive, folder)
        elif is_archive(archive):
            _unpack_tar(archive, folder)
        else:
            raise ArchiveError(f"{archive} is neither a zip nor a tar archive. Delete it and fetch it again.")
    except (ArchiveError, NoRoomError):
        raise
    except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
        raise ArchiveError(f"{archive} holds a file and a folder of the same name ({error}).") from None
    except Exception as error:  # of many kinds, from inside the readers of archives
        number = error.errno if isinstance(error, OSError) else None  # of the disk; the readers' own have none
        if number is not None and (number != errno.EINVAL or error.filename is not None):  # EINVAL: a place before the archive
            raise
        raise ArchiveError(f"{archive} is damaged ({short_reason(error)}). Delete it and fetch it again.") from None


def _unpack_zip(archive: Path, folder: Path) -> None:
    _check_directory(archive)
    with zipfile.ZipFile(archive) as bundle:
        _Budget(archive, folder).spend(sum(member.file_size for member in bundle.infolist()))  # as it says itself
        budget = _Budget(archive, folder)
        for member in _counted(archive, bundle.infolist()):
            target = _target(archive, folder, member.filename)
            if member.is_dir():
                target.mkdir(parents=True, exist_ok=True)
                continue
            kind = stat.S_IFMT(member.external_attr >> 16)
            if kind not in (0, stat.S_IFREG) or member.flag_bits & 1:
                raise ArchiveError(f"{archive}: member {member.filename!r} is a link, a device or encrypted; refused.")
            with bundle.open(member) as source:
                _write(_Limited(source, budget), target)


def _unpack_tar(archive: Path, folder: Path) -> None:
    links: dict[Path, Path] = {}

    def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        bundle.members.clear()  # tarfile remembers every member, and these archives have a hundred thousand
        target = _target(archive, folder, member.name)
        try:
            tarfile.data_filter(member, path)
        except tarfile.FilterError as error:
            reason = f"is neither file, folder nor link inside ({error})"
            raise ArchiveError(f"{archive}: member {member.name!r} {reason}; refused.") from None
        if member.issparse():
            raise ArchiveError(f"{archive}: member {member.name!r} is a sparse file; refused.")
        if member.islnk() or member.issym():  # hard links count from the archive's top, others from their own folder
            base = target.parent if member.issym() else folder
            links[target] = Path(os.path.normpath(base / member.linkname))
            return None
        return member.replace(mode=None, mtime=None, uid=None, gid=None, uname=None, gname=None, deep=False)

    with archive.open("rb") as raw, _decompressed(raw) as decompressed:
        stream = _Limited(decompressed, _Budget(archive, folder))  # so that the archive's own headers count too
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo) as bundle:
            bundle.extractall(folder, _counted(archive, bundle), filter=checked)
        while stream.read(2**20):  # to the end, which is where gzip, bzip2 and xz verify their checksums
            pass
    budget = _Budget(archive, folder)
    for target, source in links.items():
        if not source.is_file() or source == target:
            raise ArchiveError(f"{archive}: the link {target.name!r} points to {source.name!r}, which is not in it.")
        with source.open("rb") as file:
            _write(_Limited(file, budget), target)


def _target(archive: Path, folder: Path, name: str) -> Path:
    parts = PurePosixPath(name).parts
    if not name or name.startswith("/") or ".." in parts or re.search(r"[\0\\]|^[A-Za-z]:", name):
        raise ArchiveError(f"{archive}: member {name!r} would be written outside the folder; refused.")
    return folder.joinpath(*parts)


def _write(source: IO[bytes], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as file:
        shutil.copyfileobj(source, file, 2**20)  # what the headers say of the size is not relied on


class _StrictTarInfo(tarfile.TarInfo):
    """Raises for a header that cannot be read, which tarfile would take for the end of the archive."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:  # newer ones of Python do not call `frombuf` here
        try:
            return super().fromtarfile(archive)
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:
            raise tarfile.ReadError(str(error)) from None


class _Budget:
    """How many bytes an archive may still unpack to: what is plausible for its size, and at most the room on the disk."""

    def __init__(self, archive: Path, folder: Path):
        plausible, free = max(MIN_LIMIT, MAX_RATIO * archive.stat().st_size), shutil.disk_usage(folder).free
        self.left = min(plausible, free)
        self.error = ArchiveError(
            f"{archive} unpacks to more than {plausible / 2**20:,.0f} MiB, implausible for its size; refused."
        )
        if free < plausible:
            self.error = NoRoomError(f"{archive} unpacks to more than the {free / 2**20:,.0f} MiB free in {folder}: make room.")

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise self.error


class _Limited:
    """A readable stream whose bytes are spent from a budget."""

    def __init__(self, stream: IO[bytes], budget: _Budget):
        self.stream, self.budget = stream, budget

    def read(self, size: int = -1) -> bytes:
        room = self.budget.left + 1  # one byte past the limit is enough to know
        chunk = self.stream.read(room if size < 0 else min(size, room))
        self.budget.spend(len(chunk))
        return chunk


def _counted(archive: Path, members: Iterable[Any]) -> Iterator[Any]:
    for number, member in enumerate(members):
        if number >= MAX_MEMBERS:
            raise ArchiveError(f"{archive} has more than {MAX_MEMBERS:,} members; refused.")
        yield member


def _check_directory(archive: Path) -> None:
    """Refuse a zip archive of too many members by its last bytes, before zipfile reads the whole list of them."""
    with archive.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - 2**16 - 100)
        file.seek(start)
        end = file.read()
    at, at64 = end.rfind(b"PK\5\6"), end.rfind(b"PK\6\6")
    count, size = struct.unpack("<HI", end[at + 10 : at + 16]) if at >= 0 and len(end) >= at + 16 else (0, 0)
    if at64 >= 0 and len(end) >= at64 + 48:
        count, size = struct.unpack("<QQ", end[at64 + 32 : at64 + 48])
    if count > MAX_MEMBERS or size > MAX_DIRECTORY:
        raise ArchiveError(
            f"{archive} has more than {MAX_MEMBERS:,} members, or {size / 2**20:,.0f} MiB of their names; refused."
        )


def _decompressed(raw: IO[bytes]) -> IO[bytes]:
    start = raw.read(8)
    raw.seek(0)
    for magic, opener in _DECOMPRESSORS:
        if start.startswith(magic):
            return opener(raw)
    return raw
