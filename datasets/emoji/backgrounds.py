"""Random backgrounds of scenes: seven colourful kinds, and paper."""

from collections.abc import Callable
from functools import partial

import numpy as np

from kdpl.datasets.emoji.draws import LEVEL, ONE, SIZE, TURN, Draws, cosine, sine, to_images

Paint = Callable[[Draws], np.ndarray]
_CUBIC_BITS = 12  # of the cubic interpolation's weights
_Y, _X = np.mgrid[:SIZE, :SIZE].astype(np.int32) * (ONE // SIZE) - ONE // 2  # (64, 64) each, from -1/2 to 1/2


def _along(angle: np.ndarray) -> np.ndarray:
    """Each pixel's place along the direction `angle` (n,) from the frame's centre: (n, 64, 64) in units of 1 / ONE."""
    return (_X * to_images(cosine(angle)) + _Y * to_images(sine(angle))) // ONE


def _blend(draws: Draws, weight: np.ndarray) -> np.ndarray:
    """Two random colours mixed by `weight` (n, 64, 64) from 0 to ONE: (n, 64, 64, 3)."""
    first, second = draws.colours(2)[:, :, None, None].swapaxes(0, 1)  # (n, 1, 1, 3) each
    return (first * (ONE - weight[..., None]) + second * weight[..., None]) // ONE


def _cubic(n: int, columns: int) -> np.ndarray:
    """Bicubic interpolation (a = -3/4, edges repeated) from n points to 64: a matrix (64, columns >= n) of integers."""
    matrix = np.zeros((SIZE, columns), np.int32)
    for i in range(SIZE):
        base, k = divmod((2 * i + 1) * n - SIZE, 2 * SIZE)  # the source position is base + k / 128
        for tap, distance in ((-1, 128 + k), (0, k), (1, 128 - k), (2, 256 - k)):
            if distance <= 128:
                weight = 5 * distance**3 - 9 * 128 * distance**2 + 4 * 128**3
            else:
                weight = -3 * distance**3 + 15 * 128 * distance**2 - 24 * 128**2 * distance + 12 * 128**3
            weight = (weight + (1 << (22 - _CUBIC_BITS))) >> (23 - _CUBIC_BITS)  # weights are in units of 1 / 2**23
            matrix[i, min(max(base + tap, 0), n - 1)] += weight
    return matrix


_BLOB_POINTS = range(3, 8)
_BLOB_ENLARGE = np.stack([_cubic(n, _BLOB_POINTS[-1]) for n in _BLOB_POINTS])  # (5, 64, 7)
_OCTAVES = ((4, 35), (10, 30), (24, 25))  # points along an edge, deviation in grey levels
_LAST_OCTAVE = 18  # deviation of the one that has a point for every pixel
_OCTAVE_ENLARGE = {n: _cubic(n, n) for n, _ in _OCTAVES}


def _enlarge(grid: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """A grid (n, 3, h, w) interpolated by `rows` (64, h) and `columns` (64, w): (n, 64, 64, 3)."""
    tall = rows @ grid >> _CUBIC_BITS
    return np.moveaxis(tall @ columns.swapaxes(-1, -2) >> _CUBIC_BITS, 1, -1)


def _blobs(draws: Draws) -> np.ndarray:
    """Blobs of colour: a few random colours, smoothly interpolated."""
    enlarge = _BLOB_ENLARGE[draws.below(len(_BLOB_POINTS), 2)][:, :, None]  # (n, 2, 1, 64, 7)
    grid = draws.below(255 * LEVEL + 1, 3, _BLOB_POINTS[-1], _BLOB_POINTS[-1])
    return _enlarge(grid, enlarge[:, 0], enlarge[:, 1])


def _gradient(draws: Draws) -> np.ndarray:
    """A linear gradient between two colours."""
    along = _along(draws.below(TURN))
    return _blend(draws, np.clip(along * to_images(draws.between(0.7, 1.4)) // ONE + ONE // 2, 0, ONE))


def _octaves(draws: Draws) -> np.ndarray:
    """Noise of four octaves, coloured or grey, over one colour."""
    noise = np.moveaxis(draws.normal(3, SIZE, SIZE), 1, -1) * (_LAST_OCTAVE * LEVEL) // ONE
    for points, deviation in _OCTAVES:
        enlarge = _OCTAVE_ENLARGE[points]
        noise += _enlarge(draws.normal(3, points, points), enlarge, enlarge) * (deviation * LEVEL) // ONE
    grey = np.flatnonzero(draws.below(2))
    noise[grey] = noise[grey, :, :, :1]
    return noise + draws.colours(1)[:, None]


def _stripes(draws: Draws) -> np.ndarray:
    """Stripes with soft or hard edges."""
    phase = _along(draws.below(TURN // 2)) * to_images(draws.between(2, 9)) // ONE * TURN // ONE
    wave = sine(phase + to_images(draws.below(TURN)))
    half_gain = np.where(draws.below(2), round(0.35 * ONE), 2 * ONE)
    return _blend(draws, np.clip(wave * to_images(half_gain) // ONE + ONE // 2, 0, ONE))


def _checks(draws: Draws) -> np.ndarray:
    """A rotated chequerboard."""
    angle, frequency = draws.below(TURN // 2), to_images(draws.between(1.5, 6))
    cell = [_along(a) * frequency // ONE // ONE for a in (angle, angle + TURN // 4)]
    return _blend(draws, (cell[0] + cell[1]) % 2 * ONE)


def _voronoi(draws: Draws) -> np.ndarray:
    """Cells of one colour each around 4 to 13 points."""
    most = 13
    count = 4 + draws.below(most - 3)
    points = draws.below(ONE, most, 2) - ONE // 2
    least = np.full((len(count), SIZE, SIZE), 4 * ONE**2, np.int32)
    nearest = np.zeros(least.shape, np.int32)
    for i in range(most):
        x, y = (to_images(c) for c in points[:, i].T)
        distance = (_X - x) ** 2 + (_Y - y) ** 2
        closer = (distance < least) & to_images(i < count)
        least[closer], nearest[closer] = distance[closer], i
    return draws.colours(most)[np.arange(len(nearest))[:, None, None], nearest]


def _discs_and_boxes(draws: Draws) -> np.ndarray:
    """5 to 13 discs and boxes over one colour."""
    most = 13
    count = 5 + draws.below(most - 4)
    image = np.broadcast_to(draws.colours(1)[:, None], (len(count), SIZE, SIZE, 3)).copy()
    for i in range(most):
        x, y = (to_images(c) for c in draws.below(ONE, 2).T - ONE // 2)
        radius = to_images(draws.between(0.04, 0.22))
        height = radius * to_images(draws.between(0.4, 1.6)) // ONE
        disc = (_X - x) ** 2 + (_Y - y) ** 2 < radius**2
        box = (abs(_X - x) < radius) & (abs(_Y - y) < height)
        shape = np.where(to_images(draws.below(2)), disc, box) & to_images(i < count)
        np.copyto(image, draws.colours(1)[:, None], where=shape[..., None])
    return image


def _paper(draws: Draws) -> np.ndarray:
    """Paper: nearly white, of a warm tint, with faint clouds."""
    base = draws.between(205, 256) * LEVEL // ONE
    tint = np.stack([base, base - draws.below(6 * LEVEL), base - draws.below(30 * LEVEL)], -1)  # (n, 3)
    enlarge = _OCTAVE_ENLARGE[10]
    clouds = _enlarge(draws.normal(1, 10, 10), enlarge, enlarge) * (4 * LEVEL) // ONE
    return tint[:, None, None] + clouds


def _lined(draws: Draws, directions: tuple[np.ndarray, ...]) -> np.ndarray:
    """Ruled or squared paper: with pale lines a pixel wide, 6 to 12 pixels apart, across each of the directions."""
    paper = _paper(draws)
    spacing, start = (to_images(draws.below(bound)) for bound in (7, ONE))
    lines = np.any([(d + start) // (ONE // SIZE) % (6 + spacing) == 0 for d in directions], 0)
    ink = 140 * LEVEL + draws.below(80 * LEVEL, 1, 3)[:, None]
    return np.where(lines[..., None], ink, paper)


KINDS: tuple[Paint, ...] = (_blobs, _gradient, _octaves, _stripes, _checks, _voronoi, _discs_and_boxes)
PAPERS: tuple[Paint, ...] = (_paper, partial(_lined, directions=(_Y,)), partial(_lined, directions=(_X, _Y)))


def backgrounds(draws: Draws, kinds: tuple[Paint, ...] = KINDS) -> np.ndarray:
    """Paint one background for every scene, of a random kind, half of them grainy, of random contrast.

    Returns:
        (n, 64, 64, 3) int32 in units of 1 / LEVEL, from 0 to 255 * LEVEL.
    """
    kind = draws.below(len(kinds))
    image = np.empty((len(kind), SIZE, SIZE, 3), np.int32)
    for k, paint in enumerate(kinds):
        rows = np.flatnonzero(kind == k)
        image[rows] = paint(draws.fork(rows))

    grainy = np.flatnonzero(draws.below(2))
    grain = draws.fork(grainy)
    strength = to_images(grain.between(3, 14) * LEVEL // ONE)
    image[grainy] += (grain.normal(SIZE, SIZE) * strength // ONE)[..., None]

    mean = (image.sum((1, 2), dtype=np.int64, keepdims=True) // SIZE**2).astype(np.int32)
    image = mean + (image - mean) * draws.between(0.6, 1.0)[:, None, None, None] // ONE
    return np.clip(image, 0, 255 * LEVEL)
