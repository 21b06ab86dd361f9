"""Fetch the data sets that may be fetched freely, and print what must be fetched by hand and where to put it.

kdpl prepare Caltech101 EuroSAT --root DATA    # fetch, unpack, lay out
kdpl prepare --check --root DATA               # report what is there
"""

import argparse
import http.client
import json
import lzma
import shutil
import socket
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate
from torchvision.datasets.utils import download_url

from kdpl.common.command import run_command
from kdpl.common.files import atomic_write, replace
from kdpl.common.messages import short_reason
from kdpl.config.keys import check_choice
from kdpl.datasets.coop.catalog import CATALOG, Facts, Source
from kdpl.datasets.coop.folder import DamagedDataError, DataFolder, MissingDataError
from kdpl.datasets.coop.splits import load_split

TIMEOUT = 60.0  # seconds without a byte after which a download is given up


class PrepareError(RuntimeError):
    """A file could not be fetched or put into its place."""


class Report(NamedTuple):
    """What `--check` found about one data set; `state` is complete, partial, damaged or missing."""

    state: str
    images: str
    note: str


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0 when every data set asked for is there."""
    parser = argparse.ArgumentParser(prog="kdpl prepare", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one or more of {', '.join(CATALOG)}")
    parser.add_argument("--root", required=True, help="folder that holds all data sets (DATASET.ROOT)")
    parser.add_argument("--check", action="store_true", help="report what is there; fetch nothing (default: all names)")
    args = parser.parse_args(argv)
    try:
        for name in args.names:
            check_choice("The data set", name, CATALOG)
    except ValueError as error:
        parser.error(str(error))
    chosen = [CATALOG[name] for name in args.names]
    if not chosen and not args.check:
        parser.error("name the data sets to prepare, or give --check")
    if args.check:
        return _check(chosen or CATALOG.values(), args.root)
    return max([_prepare(facts, args.root) for facts in chosen])


def _prepare(facts: Facts, root: str) -> int:
    data = DataFolder(facts, root)
    print(f"{facts.name} -> {data.path}")
    for source in facts.sources:
        try:
            if not provide(source, data):
                print(f"  to do: {' '.join(source.gives)}: {_instruction(source, data)}")
        except (PrepareError, ArchiveError) as error:
            print(f"  to do: {error}")
    absent = data.absent()
    print(f"  missing: {', '.join(absent)}" if absent else "  all files are there; --check looks at the images")
    return 1 if absent else 0


def provide(source: Source, data: DataFolder) -> bool:
    """Fetch a source, or take the file that was put there by hand, and unpack it; return False if a person has to fetch it.

    Raises:
        PrepareError: the download failed, the file is not the published one, or it lacks what it should contain.
        ArchiveError: the archive is unsafe or damaged.
    """
    if all((data.path / path).exists() for path in source.gives):
        return True
    file = data.path / source.file
    placed_by_hand = bool(source.file) and file.is_file()
    if not placed_by_hand:
        if source.copy_of and (data.root / source.copy_of).is_file():
            with atomic_write(file) as copy:
                copy.write((data.root / source.copy_of).read_bytes())
            return True
        if not source.url:
            return False
        fetch(source, data)
    if source.is_archive:
        print(f"  unpacking {file.name}")
        lay_out(file, source, data)
        if not placed_by_hand:
            file.unlink()
    return True


def fetch(source: Source, data: DataFolder) -> None:
    """Download a source's file into the data set's folder; it appears there whole and checked, or not at all.

    Raises:
        PrepareError: the download failed, with the address, the file and the folder for doing it by hand.
    """
    print(f"  fetching {source.url}")
    data.path.mkdir(parents=True, exist_ok=True)
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with tempfile.TemporaryDirectory(dir=data.path, prefix=".fetch-") as part:
            download_url(source.url, part, source.file, source.md5 or None)
            if source.file.endswith(".json"):  # and not a page that asks to confirm the download
                json.loads(Path(part, source.file).read_bytes())
            replace(Path(part, source.file), data.path / source.file)
    except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
        raise PrepareError(
            f"fetching {source.url} failed ({error or type(error).__name__}). Fetch it another way"
            f"{f', from {source.by_hand}' if source.by_hand else ''}, put it into {data.path} as {source.file}, and run this "
            "command again."
        ) from None
    finally:
        socket.setdefaulttimeout(timeout)


def lay_out(archive: Path, source: Source, data: DataFolder) -> None:
    """Unpack an archive and move its content into the data set's folder, whatever folder of the archive it lies in.

    Everything beside the first of `source.gives` is moved with it; existing files stay.

    Raises:
        PrepareError: the archive does not hold what `source` says, or the files cannot be written.
        ArchiveError: it is unsafe or damaged.
    """
    first = source.gives[0]
    try:
        with tempfile.TemporaryDirectory(dir=data.path, prefix=".unpack-") as temporary:
            unpack(archive, Path(temporary))
            content = _find(Path(temporary), source.inside or first)
            if content is not None and content.is_file() and is_archive(content):
                inner = Path(temporary, "inner-archive")
                inner.mkdir()
                unpack(content, inner)
                content = _find(inner, first)
            if content is None:
                raise PrepareError(f"{archive} holds no {source.inside or first}. Is it another archive of that name?")
            moved = {content: first} if content.name != first else {entry: entry.name for entry in content.parent.iterdir()}
            for entry, name in moved.items():
                if not (data.path / name).exists():
                    replace(entry, data.path / name)
    except OSError as error:
        raise PrepareError(f"{archive} could not be unpacked into {data.path}: {error}") from None
    if lacking := [path for path in source.gives if not (data.path / path).exists()]:
        raise PrepareError(f"{archive} holds no {', '.join(lacking)}.")


def _find(top: Path, name: str) -> Path | None:
    return min(top.rglob(name), key=lambda path: len(path.parts), default=None)


def _instruction(source: Source, data: DataFolder) -> str:
    if source.copy_of:
        return f"copy {data.root / source.copy_of} into {data.path} once it is there ({source.by_hand})."
    if source.is_archive:
        return f"get {source.file} ({source.by_hand}), put it into {data.path}, and run this command again."
    return f"get it ({source.by_hand}) and put it into {data.path}."


def _check(chosen: Iterable[Facts], root: str) -> int:
    reports = {facts.name: inspect(DataFolder(facts, root)) for facts in chosen}
    rows = [(name, CATALOG[name].folder, *report) for name, report in reports.items()]
    headers = ["data set", "folder", "state", "images", "missing or wrong"]
    print(tabulate(rows, headers, maxcolwidths=[None] * 4 + [60], disable_numparse=True))
    return 0 if all(report.state == "complete" for report in reports.values()) else 1


def inspect(data: DataFolder) -> Report:
    """Read a data set's lists as loading does, and compare the number of its images with the published one."""
    published = sum(data.facts.sizes)
    if absent := data.absent():
        there = any((data.path / path).exists() for source in data.facts.sources for path in source.gives)
        return Report("partial" if there else "missing", "", ", ".join(absent))
    try:
        total = sum(map(len, load_split(data)))
    except (DamagedDataError, OSError) as error:  # a MissingDataError is an OSError
        state = "partial" if isinstance(error, MissingDataError) else "damaged"
        return Report(state, "", str(error).splitlines()[0].removeprefix(f"{data.facts.name}: "))
    return Report("complete" if total >= published else "partial", f"{total:,} of {published:,}", "")


# ----------------------------------------------------------------------------------------------------------- archives


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
        OSError: there is no room, or the files cannot be written.
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
            raise OSError(f"{archive} unpacks to {size:,} bytes, and {folder} has {free:,} free: make room.")
        shutil.unpack_archive(archive, folder, kind, **safe)
    except tarfile.FilterError as error:  # a path, link or device that leads outside
        raise ArchiveError(f"{archive}: {error}; refused.") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, RuntimeError, KeyError) as error:
        raise ArchiveError(
            f"{archive} is damaged or encrypted ({short_reason(error)}). Delete it and fetch it again."
        ) from None


if __name__ == "__main__":
    sys.exit(run_command(main))
