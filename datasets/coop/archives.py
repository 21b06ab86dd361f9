"""Unpack archives from elsewhere: nothing is written outside the target folder, and no more than is plausible."""

import lzma
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from kdpl.common.files import NoRoomError
from kdpl.common.messages import short_reason

MAX_RATIO = 30  # images hardly compress; the lists and label maps that come with them do, by about ten
MIN_LIMIT = 64 * 2**20  # bytes that an archive may unpack to however small it is


class ArchiveError(ValueError):
    """An archive is unsafe to unpack, or damaged."""


def is_archive(path: Path) -> bool:
    """Whether a file is a zip or tar archive, the latter possibly compressed."""
    return zipfile.is_zipfile(path) or tarfile.is_tarfile(path)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a zip or tar archive, recognised by its contents, into an empty folder.

    After an error the folder holds what was unpacked until then. Members of a zip that would lie outside are left out.

    Raises:
        ArchiveError: a member of a tar would lie outside the folder or is a device; the contents are implausibly large for its
            size; the archive is damaged, encrypted, or none.
        NoRoomError: the contents are larger than the room on the disk.
        OSError: the files cannot be written.
    """
    try:
        if zipfile.is_zipfile(archive):
            kind, safe = "zip", {}
            with zipfile.ZipFile(archive) as bundle:
                size = sum(member.file_size for member in bundle.infolist())
        elif is_archive(archive):
            kind, safe = "tar", {"filter": "data"}
            with tarfile.open(archive) as bundle:
                size = sum(member.size for member in bundle)
        else:
            raise ArchiveError(f"{archive} is neither a zip nor a tar archive. Delete it and fetch it again.")
        plausible, free = max(MIN_LIMIT, MAX_RATIO * archive.stat().st_size), shutil.disk_usage(folder).free
        if size > plausible:
            raise ArchiveError(f"{archive} unpacks to {size:,} bytes, implausible for its size; refused.")
        if size > free:
            raise NoRoomError(f"{archive} unpacks to {size:,} bytes, and {folder} has {free:,} free: make room.")
        shutil.unpack_archive(archive, folder, kind, **safe)
    except tarfile.FilterError as error:  # a path, link or device that leads outside
        raise ArchiveError(f"{archive}: {error}; refused.") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, KeyError) as error:
        raise ArchiveError(
            f"{archive} is damaged or encrypted ({short_reason(error)}). Delete it and fetch it again."
        ) from None
