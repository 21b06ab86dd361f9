"""Unpack archives from elsewhere: nothing is written outside the target folder, and no more than is plausible."""

import lzma
import os
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

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

    After an error the folder holds what was unpacked until then.

    Raises:
        ArchiveError: a member would lie outside the folder, is a device or encrypted; the contents are implausibly
            large for its size; the archive is damaged or is none.
        NoRoomError: the contents are larger than the room on the disk.
        OSError: the files cannot be written.
    """
    size = _Size(archive, folder)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as bundle:
                for member in bundle.infolist():
                    parts = PurePosixPath(member.filename).parts
                    if ".." in parts or os.path.isabs(member.filename):
                        raise ArchiveError(
                            f"{archive}: member {member.filename!r} would be written outside the folder; refused."
                        )
                    size.add(member.file_size)
                bundle.extractall(folder)
        elif is_archive(archive):
            with tarfile.open(archive) as bundle:

                def checked(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo:
                    size.add(member.size)
                    return tarfile.data_filter(member, path)

                bundle.extractall(folder, filter=checked)
        else:
            raise ArchiveError(f"{archive} is neither a zip nor a tar archive. Delete it and fetch it again.")
    except tarfile.FilterError as error:  # `data_filter`: a path, link or device that leads outside
        raise ArchiveError(f"{archive}: {error}; refused.") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, KeyError) as error:
        raise ArchiveError(
            f"{archive} is damaged or encrypted ({short_reason(error)}). Delete it and fetch it again."
        ) from None


class _Size:
    """How many bytes an archive may still unpack to: what is plausible for its size, and at most the room on the disk."""

    def __init__(self, archive: Path, folder: Path):
        self.archive, self.folder = archive, folder
        self.plausible, self.free = max(MIN_LIMIT, MAX_RATIO * archive.stat().st_size), shutil.disk_usage(folder).free
        self.total = 0

    def add(self, count: int) -> None:
        self.total += count
        if self.total > self.plausible:
            raise ArchiveError(
                f"{self.archive} unpacks to more than {self.plausible / 2**20:,.0f} MiB, implausible for its size; refused."
            )
        if self.total > self.free:
            raise NoRoomError(
                f"{self.archive} unpacks to more than the {self.free / 2**20:,.0f} MiB free in {self.folder}: make room."
            )
