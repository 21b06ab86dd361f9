"""Photos in tar shards and in data sets of Hugging Face are those of the folder: the same fit, predictions and training."""

import csv
import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image
from support import ROOT, mostly_slow, processes
from support.ranks import run_ranks
from support.trainings import SMALL, assert_same, train

from kdpl.bundle import read_bundle
from kdpl.common import exits
from kdpl.common.images import list_images, open_image
from kdpl.common.sources import SourceError, content, is_source
from kdpl.datasets.emoji.scenes import draw, scenes_of

NOBODY = "http://127.0.0.1:9"  # nothing listens there
NAMES = ["amphora", "banana", "pizza", "taxi"]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Forty photos as a folder, as shards of WebDataset and of tar, as a parquet file and an image folder; by kind."""
    root = tmp_path_factory.mktemp("places")
    folder, shards, plain = (root / name for name in ("folder", "shards", "plain"))
    for each in (folder, shards, plain):
        each.mkdir()
    for i, scene in enumerate(draw(scenes_of("meals")[:40])):
        Image.fromarray(scene).save(folder / f"{i:04d}.png")
    files = sorted(folder.iterdir())
    code = """if True:
        import sys
        from pathlib import Path
        import webdataset, datasets
        files, shards, parquet = sorted(Path(sys.argv[1]).iterdir()), sys.argv[2], sys.argv[3]
        for number in range(4):
            with webdataset.TarWriter(f"{shards}/photos-{number:04d}.tar") as writer:
                for file in files[10 * number : 10 * number + 10]:
                    writer.write({"__key__": file.stem, "png": file.read_bytes(), "txt": "a caption", "json": {"w": 1}})
        features = datasets.Features({"n": datasets.Value("int64"), "photo": datasets.Image()})
        rows = {"n": range(len(files)), "photo": [{"bytes": f.read_bytes(), "path": None} for f in files]}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(parquet)
    """
    parquet = root / "photos.parquet"
    made = subprocess.run(
        [sys.executable, "-c", code, folder, shards, parquet], cwd=root, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    with tarfile.open(plain / "all.tar", "w") as archive:
        for file in files:
            archive.add(file, f"./deep/{file.name}")
    for i, file in enumerate(files):  # in folders of classes, as most image folders are
        (root / "images" / NAMES[i // 10]).mkdir(parents=True, exist_ok=True)
        (root / "images" / NAMES[i // 10] / file.name).write_bytes(file.read_bytes())
    return {"folder": folder, "shards": shards, "plain": plain / "all.tar", "pattern": shards / "photos-{0000..0003}.tar",
            "parquet": f"hf:{parquet}", "images": f"hf:{root / 'images'}"}  # fmt: skip


def images_of(place) -> list[Path]:
    return list_images(place).images


def test_the_photos_of_all_places_are_the_same_in_the_same_order(places):
    expected = [open_image(path).tobytes() for path in images_of(places["folder"])]
    for kind in ("shards", "plain", "pattern", "parquet", "images"):
        assert [open_image(path).tobytes() for path in images_of(places[kind])] == expected, kind
    assert images_of(places["shards"])[11] == places["shards"] / "photos-0001.tar" / "0011.png"
    assert list_images(places["shards"]).others == {".txt": 40, ".json": 40}  # captions and facts


@pytest.mark.slow
def test_a_fit_and_its_predictions_do_not_depend_on_the_place(places, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    fits, tables = {}, {}
    for kind in ("folder", "shards", "parquet", "images"):
        out, table = tmp_path / kind, tmp_path / f"{kind}.csv"
        flags = ["--student", "emoji_student", "--teacher", "emoji_teacher", "--quiet"]
        run("fit", places[kind], tmp_path / "names.txt", "-o", out, *flags)
        run("predict", tmp_path / "folder", places[kind], "--csv", table, "--html", tmp_path / f"{kind}.html", "--quiet")
        fits[kind] = read_bundle(out).parameters
        with open(table, newline="") as file:
            tables[kind] = [list(row.values())[1:] for row in csv.DictReader(file)]
        again = run("fit", places[kind], tmp_path / "names.txt", "-o", out, *flags)
        assert "40 of 40 photos are known" in again.stdout, kind
    assert len(tables["folder"]) == 40 and all(table == tables["folder"] for table in tables.values())
    for fit in fits.values():
        assert_same(fit, fits["folder"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", mostly_slow(["shards", "parquet", "images"], sample=["shards"]))
def test_a_training_does_not_depend_on_the_place(places, tmp_path, kind):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    learned = [trained(places[each], tmp_path / each, tmp_path / "names.txt") for each in ("folder", kind)]
    assert_same(*learned)


def trained(place, output, names):
    photos = ("DATASET.NAME", "ImageFolder", "DATASET.SUBSAMPLE_CLASSES", "all", "DATASET.NUM_SHOTS", -1)
    options = (*photos, "DATASET.CLASSNAMES", names, *SMALL, "OPTIM.MAX_EPOCH", 2, "DATASET.ROOT", place)
    return train("KDPL_CoOp", output, *options)[1]


RANK = """if True:
    import sys
    tests, place, output, names = sys.argv[1:]
    sys.path.insert(0, tests)
    from kdpl.common import distributed
    from support.trainings import SMALL, build
    distributed.start(False)
    own = ("DATASET.NAME", "ImageFolder", "DATASET.SUBSAMPLE_CLASSES", "all", "DATASET.NUM_SHOTS", -1)
    own += ("DATASET.CLASSNAMES", names)
    trainer = build("KDPL_CoOp", output, *own, *SMALL, "DATASET.ROOT", place, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    for batch in trainer.train_loader_x:
        sys.stderr.write("".join(f"seen {path}\\n" for path in batch["impath"]))
"""


@pytest.mark.slow
def test_two_ranks_see_each_photo_once(places, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    (tmp_path / "rank.py").write_text(RANK)
    place = str(places["pattern"])
    found = run_ranks(2, tmp_path / "rank.py", ROOT / "tests", place, tmp_path / "out", tmp_path / "names.txt")
    assert found.returncode == 0, found.stderr
    seen = [line.partition("seen ")[2] for line in found.stderr.splitlines() if line.startswith("seen ")]
    assert sorted(seen) == sorted(map(str, images_of(place)))


def run(*args, status=0, **environment):
    """Run a command from the checkout's root, where a folder `datasets` lies."""
    command, env = [sys.executable, "-m", "kdpl", *map(str, args)], {**os.environ, **environment}
    done = processes.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == status, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("network", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": NOBODY}], ids=["offline", "unreachable"])
def test_a_name_on_the_hub_that_cannot_be_reached_is_one_line(network, tmp_path):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    place = ("fit", "hf:someone/photos:test", tmp_path / "names.txt", "-o", tmp_path / "out", "--quiet")
    done = run(*place, status=exits.BAD_INPUT, **network)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: 'hf:someone/photos:test' cannot be loaded as a data set (ConnectionError: Couldn't reach")


def test_what_is_damaged_is_named_and_names_lead_nowhere(tmp_path):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (9, 9, 9)).save(file, "png")
    shard = tmp_path / "x.tar"
    (tmp_path / "secret.png").write_bytes(file.getvalue())
    with tarfile.open(shard, "w") as archive:
        for name, data in (("good.png", file.getvalue()), ("/etc/a.png", file.getvalue()), ("../secret.png", b"not"),
                           ("cut.png", file.getvalue()[:50]), ("good.png", b"twice"), ("._hidden.png", b"")):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "../secret.png"
        archive.addfile(link)
    found = list_images(shard)
    names = [str(path.relative_to(shard)) for path in found.images]
    assert names == ["good.png", "cut.png"] and content(found.images[0]) == file.getvalue()
    unread = sorted(str(path.relative_to(shard)) for path in found.unreadable)
    assert unread == ["etc/a.png", "good.png again", "link.png", "secret.png"] and found.others.total() == 1
    with pytest.raises(ValueError, match=r"cut\.png' cannot be read as an image"):
        open_image(found.images[1])
    with pytest.raises(ValueError, match="there is no such file"):
        open_image(shard / "gone.png")
    whole = shard.read_bytes()
    shard.write_bytes(whole[:1000])
    assert "is not a whole tar file" in "".join(list_images(shard).unreadable.values())
    damaged = bytearray(whole)
    damaged[1024:1100] = b"x" * 76  # the header of the second member
    shard.write_bytes(damaged)
    after = list_images(shard)
    assert len(after.images) == 1 and "is damaged or cut off at byte 1,024" in "".join(after.unreadable.values())


def test_what_is_not_there_is_named(tmp_path):
    assert is_source("a/x-{0..3}.tar") and not is_source(tmp_path) and not is_source("a/{b}/c.png")
    with pytest.raises(SourceError, match=r"There is no shard '.*x-0\.tar', one of 4"):
        list_images(tmp_path / "x-{0..3}.tar")
    with pytest.raises(SourceError, match="cannot be loaded as a data set"):
        list_images(f"hf:{tmp_path / 'none.parquet'}")
    folder = tmp_path / "a.tar"  # a folder with such a name is a folder
    folder.mkdir()
    Image.new("RGB", (8, 8)).save(folder / "1.png")
    assert open_image(images_of(folder)[0]).size == (8, 8)
