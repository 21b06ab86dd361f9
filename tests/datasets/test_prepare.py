"""`python -m kdpl.datasets.prepare`: fetching from a server on loopback, laying out, and reporting."""

import hashlib
import io
import os
import tarfile
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from support.files import tar_of
from support.miniatures import BUILDERS, load

from kdpl.datasets import prepare
from kdpl.datasets.coop.catalog import CATALOG, Facts
from kdpl.datasets.coop.folder import DataFolder


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield the folder that is served and its address."""
    folder = tmp_path_factory.mktemp("served")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(folder))) as httpd:
        threading.Thread(target=httpd.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for build in BUILDERS.values():
        build(root)
    return root


def pack(file: Path, base: Path, names: tuple[str, ...], prefix: str = "") -> Path:
    """Pack files and folders of `base`, under a folder `prefix`, as the kind of archive that the file's name tells."""
    paths = [p for name in names for p in ([base / name] if (base / name).is_file() else (base / name).rglob("*"))]
    members = [(str(Path(prefix, p.relative_to(base))), p.read_bytes()) for p in sorted(paths) if p.is_file()]
    if file.suffix == ".zip":
        with zipfile.ZipFile(file, "w") as bundle:
            for name, content in members:
                bundle.writestr(name, content)
        return file
    with tarfile.open(file, "w" if file.suffix == ".tar" else "w:gz") as bundle:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return file


# the folder that the published archive wraps its contents in
WRAPPED = {"DescribableTextures": "dtd", "Food101": "food-101", "FGVCAircraft": "fgvc-aircraft-2013b/data"}


def serve(facts: Facts, miniatures: Path, served: Path, address: str) -> Facts:
    """Serve archives made of the miniature as the published ones are, and return facts that point to them."""
    sources = []
    for source in facts.sources:
        if not source.url:
            sources.append(source)
            continue
        folder = served / facts.name
        folder.mkdir(exist_ok=True)
        file, base = folder / source.file, miniatures / facts.folder
        if not source.is_archive:
            file.write_bytes((base / source.file).read_bytes())
        elif source.inside:  # Caltech101: a tar archive in a zip archive
            inner = pack(folder / source.inside, base, source.gives)
            pack(file, folder, (inner.name,), "caltech-101")
        else:
            pack(file, base, source.gives, WRAPPED.get(facts.name, ""))
        md5 = hashlib.md5(file.read_bytes()).hexdigest()
        sources.append(replace(source, url=f"{address}/{facts.name}/{source.file}", md5=md5))
    return replace(facts, sources=tuple(sources))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command on `tmp_path` for data sets of the given facts, and return its exit status and output."""

    def command(*facts: Facts, check: bool = False) -> tuple[int, str]:
        for entry in facts:
            monkeypatch.setitem(CATALOG, entry.name, entry)
        names = [entry.name for entry in facts]
        status = prepare.main([*names, "--root", str(tmp_path), *(["--check"] if check else [])])
        return status, capsys.readouterr().out

    return command


FETCHED = [name for name, facts in CATALOG.items() if all(source.url for source in facts.sources)]


@pytest.mark.parametrize("name", FETCHED)
def test_what_may_be_fetched_is_laid_out_so_that_its_loader_reads_it(server, miniatures, tmp_path, run, name):
    facts = serve(CATALOG[name], miniatures, *server)
    status, out = run(facts)
    assert status == 0 and "all files are there" in out
    dataset, original = load(tmp_path, name), load(miniatures, name)
    assert dataset.classnames == original.classnames
    assert len(dataset.train_x) == len(original.train_x)
    left = {path.name for path in (tmp_path / facts.folder).iterdir()}
    assert not left & {source.file for source in facts.sources if source.is_archive}, "archives are removed"
    assert not [entry for entry in left if entry.startswith(".")], "no temporary folder stays"


@pytest.mark.parametrize("name", ["ImageNet", "StanfordCars", "ImageNetV2"])
def test_what_must_be_fetched_by_hand_is_said_with_where_from_and_where_to(tmp_path, run, name):
    facts = replace(CATALOG[name], sources=tuple(s for s in CATALOG[name].sources if not s.url))
    status, out = run(facts)
    assert status == 1
    for source in facts.sources:
        assert source.by_hand in out and all(path in out for path in source.gives)
    assert f"into {tmp_path / facts.folder}" in out


def eurosat_from(url: str, md5: str = "") -> Facts:
    facts = CATALOG["EuroSAT"]
    return replace(facts, sources=(replace(facts.sources[1], url=url, md5=md5),))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/EuroSAT.zip", "{address}/nothing/here.zip", "nonsense://x/y.zip"])
def test_a_failed_download_ends_in_one_message_with_address_file_and_folder(server, tmp_path, run, url):
    url = url.format(address=server[1])
    status, out = run(eurosat_from(url))
    assert status == 1
    (line,) = [line for line in out.splitlines() if f"fetching {url} failed" in line]
    assert url in line and f"put it into {tmp_path / 'eurosat'} as EuroSAT.zip" in line
    assert os.listdir(tmp_path / "eurosat") == []


def test_a_hostile_archive_is_refused_and_nothing_of_it_stays(tmp_path, run):
    folder = tmp_path / "eurosat"
    folder.mkdir()
    (folder / "EuroSAT.zip").write_bytes(tar_of({"2750/River/a.jpg": b"1", "../../evil": b"2"}))
    status, out = run(eurosat_from("http://127.0.0.1:9/"))
    assert status == 1 and "outside" in out and "refused" in out
    assert os.listdir(folder) == ["EuroSAT.zip"] and os.listdir(tmp_path) == ["eurosat"]


def test_a_page_in_place_of_the_published_split_is_not_kept(server, tmp_path, run):
    """What Google Drive answers if it wants a click."""
    served, address = server
    (served / "page.json").write_text("<html>Confirm the download</html>")
    facts = CATALOG["EuroSAT"]
    source = replace(facts.sources[0], url=f"{address}/page.json")
    status, out = run(replace(facts, sources=(source,)))
    assert status == 1 and f"Fetch it another way, from {source.by_hand}, put it into {tmp_path / 'eurosat'}" in out
    assert os.listdir(tmp_path / "eurosat") == []


# --- the report ---


def small(name: str, miniatures: Path) -> Facts:
    """Facts whose published sizes are those of the miniature."""
    dataset = load(miniatures, name)
    facts = CATALOG[name]
    lists = [[] if facts.test_only else dataset.train_x, [] if facts.val_is_test else dataset.val or [], dataset.test]
    return replace(facts, sizes=tuple(map(len, lists)))


@pytest.mark.parametrize("name", CATALOG)
def test_a_data_set_with_all_its_images_is_complete(miniatures, name):
    facts = small(name, miniatures)
    report = prepare.inspect(DataFolder(facts, miniatures))
    assert report.state == "complete"
    total = sum(facts.sizes)
    assert report.images == f"{total:,} of {total:,}"
