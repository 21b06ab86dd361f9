"""Names as keywords of photos in XMP sidecars (`dc:subject`), which digiKam, darktable and Lightroom read.

A photo itself is never written. A sidecar that there is keeps all that others have written; the keywords that KDPL wrote are
listed in it under a name of KDPL's own, so that another name takes their place the next time.
"""

import io
import os
import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from kdpl.common.files import atomic_write

RDF, DC, X = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/", "adobe:ns:meta/"
OWN = "urn:kdpl:keywords/"
LARGEST = 16 * 2**20  # bytes of a sidecar


class SidecarError(ValueError):
    """A sidecar is there and cannot be completed."""


def sidecar_of(photo: str | os.PathLike) -> Path:
    """Return the sidecar of a photo: the one that is there, `IMG.jpg.xmp` or `IMG.xmp`, else the first."""
    whole, short = Path(f"{os.fspath(photo)}.xmp"), Path(photo).with_suffix(".xmp")
    return short if short.exists() and not whole.exists() else whole


def write_keywords(photo: str | os.PathLike, keywords: Sequence[str]) -> Path:
    """Give a photo these keywords in place of those that KDPL gave it before; return its sidecar.

    Raises:
        SidecarError: the sidecar is not XMP, or a link.
        OSError: it cannot be written.
    """
    path = sidecar_of(photo)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise SidecarError(f"'{path}' is not a regular file: nothing was written there. Move it away first.")
    root, description = _read(path) if path.exists() else _empty()
    subjects, ours = _bag(root, description, f"{{{DC}}}subject"), _bag(root, description, f"{{{OWN}}}subject")
    before = {item.text for item in ours}
    for bag in (subjects, ours):
        for item in list(bag):
            if bag is ours or item.text in before:
                bag.remove(item)
    there = {item.text for item in subjects}
    for word in dict.fromkeys(keywords):
        if word not in there:  # what somebody else wrote stays somebody else's
            for bag in (subjects, ours):
                ET.SubElement(bag, f"{{{RDF}}}li").text = word
    with atomic_write(path, "wb") as file:
        file.write(b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>\n')
        file.write(ET.tostring(root, encoding="utf-8"))
        file.write(b'\n<?xpacket end="w"?>\n')
    return path


def _empty() -> tuple[ET.Element, ET.Element]:
    ET.register_namespace("x", X)
    root = ET.Element(f"{{{X}}}xmpmeta")
    return root, ET.SubElement(ET.SubElement(root, f"{{{RDF}}}RDF"), f"{{{RDF}}}Description", {f"{{{RDF}}}about": ""})


def _read(path: Path) -> tuple[ET.Element, ET.Element]:
    """Return the root of a sidecar and its first description."""
    content = path.read_bytes()
    if len(content) > LARGEST or re.search(rb"<!(DOCTYPE|ENTITY)", content, re.I):
        raise SidecarError(f"'{path}' is too large for a sidecar, or holds a DOCTYPE: nothing was written there.")
    try:
        for _, (prefix, uri) in ET.iterparse(io.BytesIO(content), ["start-ns"]):
            if not re.fullmatch(r"ns\d+", prefix):
                ET.register_namespace(prefix, uri)  # so that others find their own prefixes
        builder = ET.TreeBuilder(insert_comments=True, insert_pis=False)
        root = ET.fromstring(content, ET.XMLParser(target=builder))
    except (ET.ParseError, ValueError) as error:
        raise SidecarError(f"'{path}' is not XMP ({error}): nothing was written there. Move it away or mend it.") from error
    description = root.find(f".//{{{RDF}}}Description")
    if description is None:
        raise SidecarError(f"'{path}' is not XMP (no rdf:Description): nothing was written there.")
    return root, description


def _bag(root: ET.Element, description: ET.Element, tag: str) -> ET.Element:
    """Return the bag of a property of any description, which is added to this one if there is none."""
    for kind, uri in (("rdf", RDF), ("dc", DC), ("kdpl", OWN)):
        ET.register_namespace(kind, uri)
    found = root.find(f".//{tag}")
    found = ET.SubElement(description, tag) if found is None else found
    bag = next((child for child in found if child.tag in (f"{{{RDF}}}Bag", f"{{{RDF}}}Seq")), None)
    return ET.SubElement(found, f"{{{RDF}}}Bag") if bag is None else bag
