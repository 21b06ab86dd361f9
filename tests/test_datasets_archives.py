"""Unpacking of archives: honest ones whole, hostile and damaged ones refused with nothing written outside."""

import gzip
import io
import tarfile

import pytest
from support.files import FILES, HONEST, member, tar_of, zip_of

from kdpl.datasets.coop import archives
from kdpl.datasets.coop.archives import ArchiveError, is_archive, unpack


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
        assert not any(path.is_symlink() for path in folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", HONEST)
def test_an_honest_archive_is_unpacked_whole(tmp_path, kind):
    assert unpacked(tmp_path, HONEST[kind]) == FILES


def test_folders_are_made_even_when_empty(tmp_path):
    unpacked(tmp_path, tar_of({}, [member("./", type=tarfile.DIRTYPE), member("./empty/", type=tarfile.DIRTYPE)]))
    assert (tmp_path / "inside/empty").is_dir()


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/tmp/evil", "C:\\evil", "..\\evil", "a/.."])
@pytest.mark.parametrize("make", [tar_of, zip_of])
def test_a_member_that_would_land_outside_is_refused(tmp_path, make, name):
    with pytest.raises(ArchiveError, match="outside the folder"):
        unpacked(tmp_path, make({"fine.txt": b"1", name: b"2"}))


@pytest.mark.parametrize(
    ("link", "target", "kind"),
    [
        ("data/link", "../../evil", tarfile.SYMTYPE),
        ("data/link", "/etc/passwd", tarfile.SYMTYPE),
        ("data/link", "..", tarfile.SYMTYPE),
        ("data/link", "../evil", tarfile.LNKTYPE),
        ("data/link", "/etc/passwd", tarfile.LNKTYPE),
    ],
)
def test_a_link_that_leads_outside_is_refused(tmp_path, link, target, kind):
    with pytest.raises(ArchiveError):
        unpacked(tmp_path, tar_of(FILES, [member(link, type=kind, linkname=target)]))


def test_a_link_inside_becomes_a_copy(tmp_path):
    links = [
        member("data/deep/soft", type=tarfile.SYMTYPE, linkname="../a.txt"),
        member("data/hard", type=tarfile.LNKTYPE, linkname="data/a.txt"),
    ]
    contents = unpacked(tmp_path, tar_of(FILES, links))
    assert contents["data/deep/soft"] == contents["data/hard"] == b"first"


def test_nothing_is_written_through_a_link(tmp_path):
    with pytest.raises(ArchiveError):
        bundle = io.BytesIO()
        with tarfile.open(fileobj=bundle, mode="w") as tar:
            tar.addfile(member("door", type=tarfile.SYMTYPE, linkname=str(tmp_path)))
            tar.addfile(member("door/evil", size=1), io.BytesIO(b"x"))
        unpacked(tmp_path, bundle.getvalue())


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_are_refused(tmp_path, kind):
    with pytest.raises(ArchiveError, match="neither file, folder nor link"):
        unpacked(tmp_path, tar_of(FILES, [member("data/device", type=kind)]))


def test_a_link_in_a_zip_is_refused(tmp_path):
    with pytest.raises(ArchiveError, match="a link, a device or encrypted"):
        unpacked(tmp_path, zip_of({"link": b"/etc/passwd"}, mode=0o120777))


@pytest.mark.parametrize("make", [lambda files: gzip.compress(tar_of(files)), zip_of])
def test_a_bomb_is_refused_at_the_limit(tmp_path, monkeypatch, make):
    monkeypatch.setattr(archives, "MIN_LIMIT", 2**20)
    with pytest.raises(ArchiveError, match="implausible for its size"):
        unpacked(tmp_path, make({"zeros": bytes(2**23)}))
    assert sum(path.stat().st_size for path in (tmp_path / "inside").rglob("*") if path.is_file()) <= 2**20


def test_a_bomb_of_many_small_parts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MIN_LIMIT", 2**20)
    monkeypatch.setattr(archives, "MAX_RATIO", 1)
    with pytest.raises(ArchiveError, match="implausible for its size"):
        unpacked(tmp_path, zip_of({f"{i}": bytes(2**18) for i in range(5)}))


def test_an_archive_of_too_many_members_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 3)
    for number, make in enumerate((tar_of, zip_of)):
        (tmp_path / str(number)).mkdir()
        with pytest.raises(ArchiveError, match="more than 3 members"):
            unpacked(tmp_path / str(number), make({f"{i}": b"" for i in range(4)}))


@pytest.mark.parametrize("kind", ["tar.gz", "tar.bz2", "tar.xz", "tar", "zip"])
def test_an_archive_cut_short_is_refused(tmp_path, kind):
    with pytest.raises(ArchiveError):
        unpacked(tmp_path, HONEST[kind][: len(HONEST[kind]) // 2])


def test_an_archive_with_a_flipped_byte_is_refused(tmp_path):
    for number, kind in enumerate(("tar.gz", "zip")):
        (tmp_path / str(number)).mkdir()
        content = bytearray(HONEST[kind])
        content[130] ^= 0xFF
        with pytest.raises(ArchiveError):
            unpacked(tmp_path / str(number), bytes(content))


def test_a_member_header_that_cannot_be_read_is_no_end_of_the_archive(tmp_path):
    content = bytearray(tar_of({"a": b"1", "b": b"2", "c": b"3"}))
    content[1024:1300] = b"\xff" * 276  # the header of b
    with pytest.raises(ArchiveError, match="damaged"):
        unpacked(tmp_path, bytes(content))


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>" * 100, gzip.compress(b"text" * 1000, mtime=0)])
def test_a_file_that_is_no_archive_is_told_so(tmp_path, content):
    with pytest.raises(ArchiveError, match="neither a zip nor a tar archive"):
        unpacked(tmp_path, content)
    assert not is_archive(tmp_path / "archive")


def test_a_file_and_a_folder_of_one_name_are_refused(tmp_path):
    with pytest.raises(ArchiveError, match="of the same name"):
        unpacked(tmp_path, tar_of({"a": b"1", "a/b": b"2"}))


def chained(count: int) -> bytes:
    """A tar archive in which a long name belongs to a long name, and so on."""
    link = tarfile.TarInfo("././@LongLink")
    link.type, link.size = tarfile.GNUTYPE_LONGNAME, 4
    return (link.tobuf() + b"abc\0".ljust(512, b"\0")) * count + tar_of({"a": b"1"})


def patched_zip(change) -> bytes:
    """A zip archive whose directory entry, from its signature on, was changed."""
    content = bytearray(zip_of({"abcd": b"1"}))
    change(content, content.index(b"PK\1\2"))
    return bytes(content)


def of_a_newer_version(content: bytearray, at: int) -> None:
    content[at + 6] = 255


def of_names_that_are_no_utf8(content: bytearray, at: int) -> None:
    content[at + 9] |= 8
    content[at + 46 : at + 50] = b"\xff\xfe\xfd\xfc"


def of_an_unknown_compression(content: bytearray, at: int) -> None:
    content[at + 10] = content[8] = 77


def of_a_member_before_the_file(content: bytearray, at: int) -> None:
    content[content.index(b"PK\5\6") + 16] += 1


@pytest.mark.parametrize(
    "content",
    [
        chained(3000),
        *map(
            patched_zip, (of_a_newer_version, of_names_that_are_no_utf8, of_an_unknown_compression, of_a_member_before_the_file)
        ),
        tar_of({"a": b"1"}, [member("pax", type=tarfile.XHDTYPE)]) + b"30 path=short\n".ljust(512, b"\0"),
        b"BZh9" + bytes(600),
    ],
)
def test_whatever_the_readers_raise_is_a_damaged_archive(tmp_path, content):
    """RecursionError, NotImplementedError, UnicodeDecodeError, OSError without a number or of a place before the file."""
    with pytest.raises(ArchiveError):
        unpacked(tmp_path, content)


def test_a_folder_behind_a_link_is_not_left_through_it(tmp_path):
    (tmp_path / "real" / "folder").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "folder").symlink_to(tmp_path / "real" / "folder")
    (tmp_path / "archive").write_bytes(tar_of(FILES, [member("link", type=tarfile.SYMTYPE, linkname="../secret")]))
    with pytest.raises(ArchiveError, match="neither file, folder nor link inside"):
        unpack(tmp_path / "archive", tmp_path / "folder")
    assert not (tmp_path / "real/folder/link").exists()
