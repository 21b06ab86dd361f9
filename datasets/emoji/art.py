"""The drawings of the embedded benchmark: 567 things in six artists' styles and two renditions of one of them."""

import csv
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kdpl.datasets.emoji.renditions import embroidery, pixel_art

EMBEDDED = Path(__file__).parents[1] / "embedded"
ART = EMBEDDED / "art.npz"
_RENDITIONS = {"pixels": pixel_art, "stitches": embroidery}  # of Twemoji
STYLES = ("twemoji", "fluent", "noto", "glossy", "contrast", "monotone", *_RENDITIONS)


class Thing(NamedTuple):
    """A thing that is drawn in every style.

    Attributes:
        name: Noto's name of it.
        target: the target data set that has it, by the subgroup of Unicode's emoji list.
    """

    name: str
    target: str


@lru_cache(maxsize=1)
def things() -> tuple[Thing, ...]:
    """Return the things in the order of the art."""
    with Path(__file__).with_name("things.csv").open(encoding="utf-8", newline="") as file:
        return tuple(Thing(**row) for row in csv.DictReader(file))


@lru_cache(maxsize=4)  # as many as a data set needs
def drawings(style: str) -> np.ndarray:
    """Return the drawings of a style, thing by thing: (567, 64, 64, 4) uint8, RGBA with straight alpha."""
    if style in _RENDITIONS:
        return _RENDITIONS[style](drawings("twemoji"))
    with np.load(ART, allow_pickle=False) as file:
        art = file[style]
    return art if art.ndim == 4 else np.concatenate([np.zeros((*art.shape, 3), np.uint8), art[..., None]], -1)


def drawing_number(style: int, thing: int) -> int:
    """Return the number of a drawing, which the randomness of its scenes depends on.

    The first two styles were numbered when there were no others: they take turns.
    """
    return 2 * thing + style if style < 2 else style * len(things()) + thing
