"""Render the benchmark's things in the styles of public emoji packs, from the npm packages `@iconify-json/<pack>`.

    pip install resvg-py
    python tools/render_art.py output/art.npz --embed --styles twemoji fluent noto glossy contrast monotone
    python tools/render_art.py output/pretraining.npz --styles noto-v1 fxemoji emojione streamline

Needs npm. The things are those of the embedded art; a drawing is looked up in a pack by the code
point of the thing in Noto, then by name. Written are `rgba` (things, styles, 64, 64, 4) uint8, with a fully transparent
picture where a pack lacks a thing, `names` and `styles`; with --embed, what the package reads: for each style an
array of its name, (things, 64, 64, 4) uint8, or (things, 64, 64), alpha alone, if all of it is black, compressed by LZMA.
"""

import argparse
import io
import json
import re
import subprocess
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import resvg_py
from PIL import Image

from kdpl.common.files import atomic_write
from kdpl.datasets.emoji.art import STYLES, drawings, things
from kdpl.datasets.emoji.generator import SIZE

PACKS = {  # style: npm package, version; packs under share-alike licences are left out on purpose
    "twemoji": ("twemoji", "1.2.5"),  # CC BY 4.0
    "fluent": ("fluent-emoji-flat", "1.2.6"),  # MIT
    "noto": ("noto", "1.2.9"),  # Apache-2.0
    "noto-v1": ("noto-v1", "1.2.5"),  # Apache-2.0
    "fxemoji": ("fxemoji", "1.2.2"),  # Apache-2.0
    "emojione": ("emojione", "1.2.3"),  # CC BY 4.0
    "streamline": ("streamline-emojis", "1.2.4"),  # CC BY 4.0
    "glossy": ("fluent-emoji", "1.2.7"),  # MIT
    "contrast": ("fluent-emoji-high-contrast", "1.2.6"),  # MIT
    "monotone": ("emojione-monotone", "1.2.1"),  # CC BY 4.0
}


class Pack(NamedTuple):
    """An icon pack: its icons and two ways to find one."""

    collection: dict  # Iconify's JSON: `icons` by name, default `width` and `height`
    by_code: dict[str, str]  # code points, such as "1f422", to icon name
    by_key: dict[str, str]  # simplified name to icon name


def _key(name: str) -> str:
    return re.sub("[^a-z0-9]", "", name.lower())


def fetch(package: str, version: str) -> Pack:
    """Download a pack with npm and read it, without unpacking it to disk."""
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", "--silent", f"@iconify-json/{package}@{version}"]
        archive = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
        with tarfile.open(Path(folder, archive)) as tar:
            collection, codes = (json.load(tar.extractfile(f"package/{f}.json")) for f in ("icons", "chars"))

    icons = collection["icons"]
    by_key = {_key(name): name for name in reversed(icons)}
    for alias, entry in collection.get("aliases", {}).items():
        if set(entry) == {"parent"} and entry["parent"] in icons:  # other aliases turn or mirror the icon
            by_key.setdefault(_key(alias), entry["parent"])
    by_code = {_without_variant(code): name for code, name in codes.items() if name in icons}
    return Pack(collection, by_code, by_key)


def _without_variant(code: str) -> str:
    """Drop U+FE0F, which asks for the coloured form and which packs write or leave out as they please."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def find(pack: Pack, code: str | None, names: list[str]) -> str | None:
    """Return the name of a pack's icon for a thing, by code point or else by the first name it knows."""
    if code in pack.by_code:
        return pack.by_code[code]
    return next((pack.by_key[_key(name)] for name in names if _key(name) in pack.by_key), None)


def render(pack: Pack, icon: str) -> np.ndarray:
    """Return an icon as RGBA with straight alpha, (64, 64, 4) uint8, centred if it is not square."""
    entry = pack.collection["icons"][icon]
    width, height = (entry.get(k, pack.collection.get(k, 16)) for k in ("width", "height"))
    edge = max(width, height)
    left, top = entry.get("left", 0) - (edge - width) / 2, entry.get("top", 0) - (edge - height) / 2
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{edge}" height="{edge}" viewBox="{left} {top} {edge} {edge}">{entry["body"]}</svg>'
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))


def embed(file: BinaryIO, rgba: np.ndarray, styles: list[str]) -> None:
    """Write drawings (things, styles, 64, 64, 4) as the package reads them, by style; NumPy has no LZMA of its own."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_LZMA) as archive:
        for column, style in enumerate(styles):
            art = rgba[:, column]
            buffer = io.BytesIO()
            np.save(buffer, art if art[..., :3].any() else np.ascontiguousarray(art[..., 3]))
            member = zipfile.ZipInfo(f"{style}.npy")  # without the time of writing
            member.compress_type = zipfile.ZIP_LZMA
            archive.writestr(member, buffer.getvalue())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--styles", nargs="+", choices=PACKS, required=True)
    parser.add_argument("--embed", action="store_true", help="write the layout of datasets/embedded/art.npz")
    args = parser.parse_args()

    names = [thing.name for thing in things()]
    packs = {style: fetch(*PACKS[style]) for style in dict.fromkeys(["noto", *args.styles])}
    codes = {name: code for code, name in reversed(packs["noto"].by_code.items())}

    rgba = np.zeros((len(names), len(args.styles), SIZE, SIZE, 4), np.uint8)
    for row, name in enumerate(names):
        code = codes.get(name.replace(" ", "-"))
        aliases = [name, *(pack.by_code[code] for pack in packs.values() if code in pack.by_code)]
        for column, style in enumerate(args.styles):
            icon = find(packs[style], code, aliases)
            if icon is not None:
                rgba[row, column] = render(packs[style], icon)

    for column, style in enumerate(args.styles):
        found = rgba[:, column, ..., 3].any((1, 2)).sum()
        line = f"{style}: {found} of {len(names)} things"
        if style in STYLES:
            line += f", {(drawings(style) == rgba[:, column]).all((1, 2, 3)).sum()} identical to the embedded art"
        print(line)
    with atomic_write(args.output) as file:
        if args.embed:
            embed(file, rgba, args.styles)
        else:
            np.savez_compressed(file, rgba=rgba, names=names, styles=args.styles)


if __name__ == "__main__":
    main()
