"""Unpacking of archives: honest ones whole, careless and damaged ones refused with nothing written outside."""

import gzip
import tarfile

import pytest
from support.files import FILES, HONEST, member, tar_of, zip_of

from kdpl.datasets import prepare as archives
from kdpl.datasets.prepare import ArchiveError, is_archive, unpack


def unpacked(tmp_path, content: bytes) -> dict[str, bytes]:
    """Unpack into `inside/`; whatever else appears in `tmp_path` was written outside."""
    archive = tmp_path / "archive"
    archive.write_bytes(content)
    folder = tmp_path / "inside"
    folder.mkdir()
    try:
        unpack(archive, folder)
    finally:
        assert {path.name for path in tmp_path.iterdir()} == {"archive", "inside"}
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_archive_is_unpacked_whole(tmp_path, kind):
    assert unpacked(tmp_path, HONEST[kind]) == FILES


@pytest.mark.parametrize("name", ["../evil", "a/../../evil"])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_member_that_would_land_outside_is_not_written(tmp_path, make, name):
    archive = make({"fine.txt": b"1", name: b"2"})
    if make is zip_of:  # left out
        assert unpacked(tmp_path, archive) == {"fine.txt": b"1"}
    else:
        with pytest.raises(ArchiveError, match="outside"):
            unpacked(tmp_path, archive)


@pytest.mark.parametrize(
    ("link", "target", "kind"),
    [
        ("data/link", "../../evil", tarfile.SYMTYPE),
        ("data/link", "/etc/passwd", tarfile.SYMTYPE),
        ("data/link", "../evil", tarfile.LNKTYPE),
        ("data/device", "", tarfile.CHRTYPE),
    ],
)
def test_a_link_that_leads_outside_and_a_device_are_refused(tmp_path, link, target, kind):
    with pytest.raises(ArchiveError):
        unpacked(tmp_path, tar_of(FILES, [member(link, type=kind, linkname=target)]))


@pytest.mark.parametrize("make", [lambda files: gzip.compress(tar_of(files)), zip_of])
def test_more_than_is_plausible_is_refused(tmp_path, monkeypatch, make):
    monkeypatch.setattr(archives, "MIN_LIMIT", 2**20)
    monkeypatch.setattr(archives, "MAX_RATIO", 1)
    with pytest.raises(ArchiveError, match="implausible for its size"):
        unpacked(tmp_path, make({f"{i}": bytes(2**18) for i in range(5)}))
    assert sum(path.stat().st_size for path in (tmp_path / "inside").rglob("*") if path.is_file()) <= 2**20


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "tar", "zip"])
def test_an_archive_cut_short_is_refused(tmp_path, kind):
    with pytest.raises(ArchiveError):
        unpacked(tmp_path, HONEST[kind][: len(HONEST[kind]) // 2])


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, gzip.compress(b"text" * 1000, mtime=0)])
def test_a_file_that_is_no_archive_is_told_so(tmp_path, content):
    with pytest.raises(ArchiveError, match="neither a zip nor a tar archive"):
        unpacked(tmp_path, content)
    assert not is_archive(tmp_path / "archive")
