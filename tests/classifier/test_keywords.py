"""Keywords in XMP sidecars: read back by a plain XML parser; what others wrote there stays."""

import xml.etree.ElementTree as ET

import pytest

from kdpl.classifier.keywords import DC, RDF, SidecarError, sidecar_of, write_keywords

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
    assert path.read_text(encoding="utf-8") == content


def test_a_sidecar_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / "b.txt").write_text("mine")
    (tmp_path / "a.jpg.xmp").symlink_to(tmp_path / "b.txt")
    with pytest.raises(SidecarError, match="regular file"):
        write_keywords(tmp_path / "a.jpg", ["cat"])
    assert (tmp_path / "b.txt").read_text() == "mine"
