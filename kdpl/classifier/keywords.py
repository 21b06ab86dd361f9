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

RDF, DC, OWN = "http://www.w3.org/1999/02/22-rdf-syntax-ns#", "http://purl.org/dc/elements/1.1/", "urn:kdpl:keywords/"
PREFIXES = {"x": "adobe:ns:meta/", "rdf": RDF, "dc": DC, "kdpl": OWN}
EMPTY = f'<x:xmpmeta xmlns:x="{PREFIXES["x"]}"><r:RDF xmlns:r="{RDF}"><r:Description r:about=""/></r:RDF></x:xmpmeta>'


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
    root = _read(path)
    subjects, ours = _bag(root, f"{{{DC}}}subject"), _bag(root, f"{{{OWN}}}subject")
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
        ET.ElementTree(root).write(file, "utf-8", xml_declaration=True)
    return path


def _read(path: Path) -> ET.Element:
    """Return the root of a sidecar, which has a description; of none that of an empty one."""
    content = path.read_bytes() if path.exists() else EMPTY.encode()
    for prefix, uri in PREFIXES.items():
        ET.register_namespace(prefix, uri)
    try:
        for _, (prefix, uri) in ET.iterparse(io.BytesIO(content), ["start-ns"]):
            if not re.fullmatch(r"ns\d+", prefix):
                ET.register_namespace(prefix, uri)  # so that others find their own prefixes
        root = ET.fromstring(content, ET.XMLParser(target=ET.TreeBuilder(insert_comments=True)))
    except (ET.ParseError, ValueError) as error:
        raise SidecarError(f"'{path}' is not XMP ({error}): nothing was written there. Move it away or mend it.") from error
    if root.find(f".//{{{RDF}}}Description") is None:
        raise SidecarError(f"'{path}' is not XMP (no rdf:Description): nothing was written there.")
    return root


def _bag(root: ET.Element, tag: str) -> ET.Element:
    """Return the bag of a property of any description, which is added to the first one if there is none."""
    found = root.find(f".//{tag}")
    found = ET.SubElement(root.find(f".//{{{RDF}}}Description"), tag) if found is None else found
    bag = next((child for child in found if child.tag in (f"{{{RDF}}}Bag", f"{{{RDF}}}Seq")), None)
    return ET.SubElement(found, f"{{{RDF}}}Bag") if bag is None else bag
