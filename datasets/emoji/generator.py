"""Drawings in random scenes: the image generator of the embedded benchmark, exact on every machine.

A scene is a drawing with transparency, scaled, rotated and moved, over a random background. Everything is integer
arithmetic, so a pixel depends on neither the platform nor the version of NumPy, and many scenes are computed at once.
"""

from typing import NamedTuple

import numpy as np

from kdpl.datasets.emoji.backgrounds import KINDS, PAPERS, Paint, backgrounds
from kdpl.datasets.emoji.draws import LEVEL, ONE, SIZE, TURN, Draws, cosine, scene_draws, sine, to_images

GENERATOR_VERSION = 1  # raise it with every change of a pixel: caches of another version are redrawn

_CHUNK = 32  # scenes computed at once: an image array of so many stays in the processor's cache
_PAD = 2  # transparent pixels around a drawing: what lies outside is sampled between two of them
_SUBPIXELS = 1 << 7  # steps from one pixel to the next in bilinear interpolation

Interval = tuple[float, float]


class Look(NamedTuple):
    """The statistics of scenes."""

    scales: tuple[Interval, ...] = ((0.5, 0.9),)  # the drawing's edge as a part of the frame's lies in one of these
    turn: float = 0.26  # deviation of the drawing's turn, in radians
    most_turn: float = 0.6  # the largest turn
    brightness: tuple[Interval, ...] = ((0.8, 1.1),)  # of the whole scene
    kinds: tuple[Paint, ...] = KINDS  # the backgrounds
    inks: bool = False  # whether the drawing is drawn in a random dark colour instead of its own


SCENES = Look()
OTHER_SCENES = Look(((0.42, 0.55), (0.9, 1.05)), turn=0.5, most_turn=1.0, brightness=((0.65, 0.8), (1.1, 1.3)))
SKETCHES = Look(kinds=PAPERS, inks=True)


def _premultiplied(art: np.ndarray) -> np.ndarray:
    """RGBA drawings (m, 64, 64, 4) as rows of pixels (m * 68 * 68, 4): colour times alpha and 255 times alpha."""
    alpha = art[..., 3:].astype(np.int32)
    pixels = np.concatenate([art[..., :3] * alpha, 255 * alpha], -1)
    return np.pad(pixels, ((0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0))).reshape(-1, 4)


def _one_of(intervals: tuple[Interval, ...], draws: Draws) -> np.ndarray:
    """A uniform number in one of the intervals, which are equally likely: (n,) in units of 1 / ONE."""
    if len(intervals) == 1:
        return draws.between(*intervals[0])
    return np.choose(draws.below(len(intervals)), [draws.between(*interval) for interval in intervals])


def _warp(pixels: np.ndarray, drawing: np.ndarray, draws: Draws, look: Look = SCENES) -> np.ndarray:
    """Scale, rotate and move drawings, bilinear over premultiplied alpha: `pixels` times ONE, (n, 64, 64, 4)."""
    scale = _one_of(look.scales, draws)
    deviation, most = (round(radians * TURN / (2 * np.pi)) for radians in (look.turn, look.most_turn))
    angle = np.clip(draws.normal() * deviation // ONE, -most, most)
    shift = (ONE - scale)[:, None] * draws.between(-1, 1, 2) // ONE  # (n, 2) in half frames: the drawing stays inside

    edge = (2 * np.arange(SIZE, dtype=np.int64) - SIZE + 1) * ONE - shift[..., None] * SIZE  # (n, 2, 64) in half pixels
    turn = (to_images(f(angle) * ONE // scale) for f in (cosine, sine))
    along, across = ((factor * edge // ONE).astype(np.int32) for factor in turn)  # 64 bits inside
    x, right = _source(along[:, 0, None, :] - across[:, 1, :, None])
    y, down = _source(across[:, 0, None, :] + along[:, 1, :, None])

    width = SIZE + 2 * _PAD
    first = to_images(drawing) * width**2 + y * width + x
    here, east, south, southeast = (pixels.take(first + step, axis=0) for step in (0, 1, width, width + 1))
    upper = here * (_SUBPIXELS - right) + east * right
    lower = south * (_SUBPIXELS - right) + southeast * right
    return upper * (_SUBPIXELS - down) + lower * down


def _source(half_pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn places from a drawing's centre into the pixel before and the steps from it to the next: (n, 64, 64, 1)."""
    place = (half_pixels + (SIZE - 1 + 2 * _PAD) * ONE) // (2 * ONE // _SUBPIXELS)
    place = np.clip(place, 0, _SUBPIXELS * (SIZE + 2 * _PAD - 1) - 1)
    return place // _SUBPIXELS, (place % _SUBPIXELS)[..., None]


def draw_scenes(
    art: np.ndarray, row: np.ndarray, drawing: np.ndarray, rendering: np.ndarray, look: Look = SCENES
) -> np.ndarray:
    """Draw scenes, each a function of its drawing's pixels and number, of its rendering number and of the look alone.

    Args:
        art: (m, 64, 64, 4) uint8, drawings as RGBA with straight alpha.
        row: (n,) rows of `art`.
        drawing: (n,) numbers of the drawings.
        rendering: (n,) non-negative numbers that tell scenes of one drawing apart.

    Returns:
        (n, 64, 64, 3) uint8 RGB.
    """
    row, drawing, rendering = np.asarray(row), np.asarray(drawing), np.asarray(rendering)
    pixels = _premultiplied(art)
    scenes = np.empty((len(drawing), SIZE, SIZE, 3), np.uint8)
    for start in range(0, len(drawing), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        scenes[chunk] = _compose(pixels, row[chunk], scene_draws(drawing[chunk], rendering[chunk]), look)
    return scenes


def _compose(pixels: np.ndarray, row: np.ndarray, draws: Draws, look: Look) -> np.ndarray:
    image = backgrounds(draws, look.kinds)
    warped = _warp(pixels, row, draws, look)
    colour, alpha = warped[..., :3] // (255 * ONE // LEVEL), warped[..., 3:] // 255**2
    if look.inks:
        colour = draws.below(110 * LEVEL, 1, 3)[:, None] * alpha // ONE
    image = colour + image * (ONE - alpha) // ONE
    image = image * _one_of(look.brightness, draws)[:, None, None, None] // ONE
    return np.clip((image + LEVEL // 2) // LEVEL, 0, 255).astype(np.uint8)
