"""The drawings of the embedded benchmark: 567 things in six artists' styles and two renditions of one of them."""

import csv
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

EMBEDDED = Path(__file__).parents[1] / "embedded"
ART = EMBEDDED / "art.npz"
STYLES = ("twemoji", "fluent", "noto", "glossy", "contrast", "monotone", "pixels", "stitches")  # the last two: see below
_SHINE = np.array((190, 240, 256, 225), np.int32)  # across a thread of four pixels, in 256ths
_STITCH = 12  # pixels from one end of a stitch to the next


class Thing(NamedTuple):
    """A thing that is drawn in every style."""

    name: str  # Noto's
    target: str  # the target data set that has it, by the subgroup of Unicode's emoji list


@lru_cache(maxsize=1)
def things() -> tuple[Thing, ...]:
    """Return the things in the order of the art."""
    with Path(__file__).with_name("things.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Thing(**row) for row in csv.DictReader(file))


@lru_cache(maxsize=4)  # as many as a data set needs
def drawings(style: str) -> np.ndarray:
    """Return the drawings of a style, thing by thing: (567, 64, 64, 4) uint8, RGBA with straight alpha."""
    if style in _OF_TWEMOJI:
        return _OF_TWEMOJI[style](drawings("twemoji"))
    with np.load(ART, allow_pickle=False) as file:
        art = file[style]
    return art if art.ndim == 4 else np.concatenate([np.zeros((*art.shape, 3), np.uint8), art[..., None]], -1)


def drawing_number(style: int, thing: int) -> int:
    """Return the number of a drawing, which the randomness of its scenes depends on.

    The first two styles were numbered when there were no others: they take turns.
    """
    return 2 * thing + style if style < 2 else style * len(things()) + thing


# --- renditions by filters of our own, in integer arithmetic ---


def _coarse(drawings: np.ndarray, block: int) -> np.ndarray:
    """Average drawings over blocks, with alpha and each channel in steps of 255 and 51: (m, 64, 64, 4) int32."""
    m, height, width, _ = drawings.shape
    alpha = drawings[..., 3:].astype(np.int32)
    pixels = np.concatenate([drawings[..., :3] * alpha, alpha], -1)
    total = pixels.reshape(m, height // block, block, width // block, block, 4).sum((2, 4))
    weight = np.maximum(total[..., 3:], 1)
    colour = (2 * total[..., :3] + weight) // (2 * weight)
    opaque = 2 * total[..., 3:] >= 255 * block**2
    blocks = np.concatenate([(colour + 25) // 51 * 51, 255 * opaque], -1) * opaque
    return blocks.repeat(block, 1).repeat(block, 2)


def pixel_art(drawings: np.ndarray) -> np.ndarray:
    """Return drawings (m, 64, 64, 4) uint8 with straight alpha as 16 x 16 squares of at most 216 colours."""
    return _coarse(drawings, 4).astype(np.uint8)


def embroidery(drawings: np.ndarray) -> np.ndarray:
    """Return drawings (m, 64, 64, 4) uint8 with straight alpha as slanted stitches, with a dark seam around."""
    image = _coarse(drawings, 2)
    y, x = np.mgrid[: image.shape[1], : image.shape[2]]
    thread, across = np.divmod(x + y, len(_SHINE))
    ends = (x - y + thread * 5) % _STITCH == 0
    light = np.where(ends, 140, _SHINE[across])
    inside = np.pad(image[..., 3] > 0, ((0, 0), (1, 1), (1, 1)))
    seam = ~(inside[:, :-2, 1:-1] & inside[:, 2:, 1:-1] & inside[:, 1:-1, :-2] & inside[:, 1:-1, 2:])
    light = np.where(seam, light * 5 // 8, light)
    image[..., :3] = image[..., :3] * light[..., None] >> 8
    return image.astype(np.uint8)


_OF_TWEMOJI = {"pixels": pixel_art, "stitches": embroidery}
