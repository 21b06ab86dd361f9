"""Photos in folders by class: copied, linked, moved and moved back, given keywords, and named as they come."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support import image_file, processes, untrained_bundle

from kdpl.classifier.folders import LOG, Sorter, folder_name, undo
from kdpl.classifier.keywords import DC, RDF, SidecarError, sidecar_of, write_keywords
from kdpl.common import exits
from kdpl.predict import main

pytestmark = pytest.mark.slow

NAMES = ["red apple", "pizza", "croissant"]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return str(untrained_bundle(tmp_path_factory.mktemp("out"), "CoOp", NAMES))


@pytest.fixture
def photos(tmp_path):
    """Five photos, two of the same name, one with a sidecar."""
    for i in range(4):
        image_file(tmp_path / "photos" / f"img_{i}.png", seed=i)
    image_file(tmp_path / "photos" / "more" / "img_0.png", seed=9)
    (tmp_path / "photos" / "img_1.png.xmp").write_text(f'<r:RDF xmlns:r="{RDF}"><r:Description r:about=""/></r:RDF>')
    return tmp_path / "photos"


def content(folder):
    """The content of every file below a folder, by its path."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name[0] != "."}


def named(prompts, photos, table):
    """The name that predict gives each photo."""
    assert main([prompts, str(photos), "--json", str(table)]) == 0
    return {row["path"]: row["names"][0] for row in map(json.loads, table.read_text().splitlines())}


@pytest.mark.parametrize("flag", ["--copy-to", "--link-to"])
def test_photos_are_sorted_into_folders_by_class(flag, prompts, photos, tmp_path):
    names = named(prompts, photos, tmp_path / "a.jsonl")
    for _ in range(2):  # again changes nothing
        assert main([prompts, str(photos), flag, str(tmp_path / "sorted")]) == 0
        for path, name in names.items():
            same = [p for p in (tmp_path / "sorted" / name).iterdir() if p.read_bytes() == Path(path).read_bytes()]
            assert same and all(p.is_symlink() == (flag == "--link-to") for p in same)
        assert len([p for p in (tmp_path / "sorted").rglob("*.png")]) == 5


def test_folder_names_fit_every_file_system_and_are_never_shared(tmp_path):
    assert folder_name("../a:b?") == "_a_b_" and folder_name("...") == "_" and folder_name("CD/DVD") == "CD_DVD"
    with pytest.raises(ValueError, match="'a:b' and 'A/b' would share the folder 'A_b'"):
        Sorter(tmp_path, "copy", ["a:b", "A/b"])
    photo = image_file(tmp_path / "x.png")
    Sorter(tmp_path / "s", "copy", ["../up"]).add(str(photo), "../up")
    assert [str(p.relative_to(tmp_path)) for p in (tmp_path / "s").rglob("*.png")] == ["s/_up/x.png"]


# -------------------------------------------------------------------------------------------------------- moved and back


def test_photos_are_moved_with_their_sidecars_and_back(prompts, photos, tmp_path, capsys):
    before, names = content(photos), named(prompts, photos, tmp_path / "a.jsonl")
    target = tmp_path / "sorted"
    assert main([prompts, str(photos), "--move-to", str(target)]) == 0
    assert not content(photos)
    there = content(target)
    del there[LOG]
    assert sorted(there.values()) == sorted(before.values())
    (sidecar,) = [path for path in there if path.endswith(".xmp")]
    assert sidecar == f"{names[str(photos / 'img_1.png')]}/img_1.png.xmp" and sidecar.removesuffix(".xmp") in there
    capsys.readouterr()
    assert main(["--undo", str(target / LOG)]) == 0
    assert capsys.readouterr().out == "5 photos are back where they were\n"
    assert content(photos) == before and not content(target) and not [p for p in target.iterdir() if p.is_dir()]
    assert main(["--undo", str(target)]) == exits.BAD_INPUT and "There is no log" in capsys.readouterr().err


def test_a_photo_does_not_go_back_over_a_file_that_is_there(prompts, photos, tmp_path, capsys):
    before, target = content(photos), tmp_path / "sorted"
    assert main([prompts, str(photos), "--move-to", str(target)]) == 0
    (photos / "img_2.png").write_bytes(b"new")
    assert main(["--undo", str(target)]) == exits.FAILED
    out, err = capsys.readouterr()
    assert "4 photos are back" in out and re.search(r"left: '.*img_2.png', since there is a file where it was", err)
    assert content(photos) == {**before, "img_2.png": b"new"}
    (photos / "img_2.png").unlink()
    assert main(["--undo", str(target)]) == 0 and content(photos) == before


KILLED = """
import os, signal, sys
from kdpl import predict
rename, calls = os.rename, []
def killed(source, target):
    calls.append(source)
    if len(calls) == {at} and {before}:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(source, target)
    if len(calls) == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
os.rename = killed
predict.main(sys.argv[1:])
"""


@pytest.mark.parametrize(("at", "before"), [(2, True), (3, True), (3, False)])  # 2, 3: img_1.png and its sidecar
def test_a_run_that_is_killed_between_two_moves_resumes_and_all_goes_back(at, before, prompts, photos, tmp_path):
    everything, target = content(photos), tmp_path / "sorted"
    command = [prompts, str(photos), "--move-to", str(target)]
    killed = processes.run([sys.executable, "-c", KILLED.format(at=at, before=before), *command], check=False)
    assert killed.returncode == -signal.SIGKILL and (target / LOG).is_file()
    with open(target / LOG, "a") as log:
        log.write('\n[["torn')
    assert len(content(photos)) + len(content(target)) == len(everything) + 1
    assert main(command) == 0
    assert not content(photos) and len(content(target)) == len(everything) + 1
    assert undo(target) == (5, []) and content(photos) == everything


def test_a_kill_between_a_copy_to_another_disk_and_the_end_loses_and_doubles_nothing(photos, tmp_path, monkeypatch):
    sorter = Sorter(tmp_path / "sorted", "move", NAMES)

    def other_disk(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "rename", other_disk)
    sorter.add(str(photos / "img_0.png"), "pizza")
    original = (tmp_path / "sorted/pizza/img_0.png").read_bytes()
    (photos / "img_0.png").write_bytes(original)  # as if the last step were missing
    Sorter(tmp_path / "sorted", "move", NAMES)
    assert not (photos / "img_0.png").exists() and (tmp_path / "sorted/pizza/img_0.png").read_bytes() == original
    assert undo(tmp_path / "sorted") == (1, []) and (photos / "img_0.png").read_bytes() == original


@pytest.mark.parametrize(
    "flags",
    [["--move-to", "d", "--copy-to", "x"], ["--move-to", "d", "--html", "x.html"], ["--undo", "x"], ["--watch", "--html", "x"]],
)
def test_flags_that_contradict_each_other_are_refused(flags, prompts, photos, capsys):
    with pytest.raises(SystemExit):
        main([prompts, str(photos), *flags])
    assert main([prompts, str(photos), "--move-to", str(photos / "sorted")]) == exits.BAD_INPUT
    assert "is inside the photos' folder" in capsys.readouterr().err and len(content(photos)) == 6


# -------------------------------------------------------------------------------------------------------------- keywords


OTHERS = """<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><!-- by hand -->
<rdf:Description rdf:about="" xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmp:Rating="3"/>
<rdf:Description rdf:about="" xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:subject><rdf:Bag><rdf:li>holiday</rdf:li>
</rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="w"?>"""


def subjects(path):
    return [item.text for item in ET.parse(path).getroot().iterfind(f".//{{{DC}}}subject/{{{RDF}}}Bag/{{{RDF}}}li")]


def test_a_new_name_takes_the_place_of_the_earlier_one_and_the_photo_is_not_touched(tmp_path):
    photo = tmp_path / "a.jpg"
    photo.write_bytes(b"photo")
    path = write_keywords(photo, ["cat <b> & c"])
    assert path == tmp_path / "a.jpg.xmp" and subjects(path) == ["cat <b> & c"]
    write_keywords(photo, ["dog"])
    assert subjects(path) == ["dog"] and photo.read_bytes() == b"photo" and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["a.jpg.xmp", "a.xmp"])
def test_a_sidecar_of_others_is_completed(tmp_path, name):
    path = tmp_path / name
    path.write_text(OTHERS, encoding="utf-8")
    assert sidecar_of(tmp_path / "a.jpg") == path
    write_keywords(tmp_path / "a.jpg", ["holiday", "cat"])
    assert subjects(path) == ["holiday", "cat"]
    write_keywords(tmp_path / "a.jpg", ["dog"])
    text = path.read_text(encoding="utf-8")
    assert subjects(path) == ["holiday", "dog"] and 'xmp:Rating="3"' in text and "by hand" in text


@pytest.mark.parametrize(
    "content", ["no xml", "<a/>", '<!DOCTYPE a [<!ENTITY b "c">]><x:xmpmeta xmlns:x="adobe:ns:meta/">&b;</x:xmpmeta>', ""]
)
def test_a_sidecar_that_is_none_is_left_alone(tmp_path, content):
    path = tmp_path / "a.jpg.xmp"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SidecarError, match=r"a\.jpg\.xmp"):
        write_keywords(tmp_path / "a.jpg", ["cat"])
    path.rename(tmp_path / "mine.txt")
    path.symlink_to(tmp_path / "mine.txt")
    with pytest.raises(SidecarError, match="regular file"):
        write_keywords(tmp_path / "a.jpg", ["cat"])
    assert path.read_text(encoding="utf-8") == content


def test_keywords_are_in_sidecars_beside_photos_that_stay_as_they_are(prompts, photos, tmp_path, capsys):
    names, pixels = named(prompts, photos, tmp_path / "a.jsonl"), {p: p.read_bytes() for p in photos.rglob("*.png")}
    (photos / "img_3.png.xmp").write_text("no XMP")
    assert main([prompts, str(photos), "--keywords"]) == exits.SOME_UNREAD
    assert "1 got no keyword" in capsys.readouterr().err and (photos / "img_3.png.xmp").read_text() == "no XMP"
    for path in set(names) - {str(photos / "img_3.png")}:
        assert subjects(f"{path}.xmp") == [names[path]]
    assert pixels == {p: p.read_bytes() for p in photos.rglob("*.png")}
    (photos / "img_3.png.xmp").unlink()
    assert main([prompts, str(photos), "--keywords", "--move-to", str(tmp_path / "sorted")]) == 0
    for photo in (tmp_path / "sorted").rglob("*.png"):
        assert subjects(f"{photo}.xmp") == [photo.parent.name]


# ----------------------------------------------------------------------------------------------------------------- watch


def test_new_photos_are_named_as_they_come_one_that_is_being_written_when_it_is_whole(prompts, photos, tmp_path):
    command = [sys.executable, "-m", "kdpl", "predict", prompts, str(photos), "--watch", "--csv", str(tmp_path / "a.csv")]
    process = processes.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    first = {process.stdout.readline().split("\t")[0] for _ in range(5)}
    assert first == {str(p) for p in photos.rglob("*.png")}
    whole = image_file(tmp_path / "large.png", 200, seed=5).read_bytes()
    with open(photos / "slow.png", "wb") as file:
        for start in range(0, len(whole), len(whole) // 5):
            file.write(whole[start : start + len(whole) // 5])
            file.flush()
            time.sleep(0.4)
    image_file(photos / "new folder" / "quick.png", seed=6)
    later = {process.stdout.readline().split("\t")[0] for _ in range(2)}
    assert later == {str(photos / "slow.png"), str(photos / "new folder" / "quick.png")}
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0 and "7 images in" in err and "left out" not in err and "Traceback" not in err, err
    assert len((tmp_path / "a.csv").read_text().splitlines()) == 8
