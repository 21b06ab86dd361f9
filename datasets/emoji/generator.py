"""Drawings in random scenes: the image generator of the embedded benchmark, exact on every machine.

A scene is a drawing with transparency, scaled, rotated and moved, over a random background. Everything is integer
arithmetic, so a pixel depends on neither the platform nor the version of NumPy, and many scenes are computed at once.

The units of integers are chosen so that products fit 32 bits, which is several times faster than 64.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

SIZE = 64  # pixels along an edge of a scene and of a drawing
ONE = 1 << 14  # fixed-point 1.0 of lengths (a frame's edge is 1), scales and blending weights
LEVEL = 1 << 6  # fixed-point 1.0 of grey levels (0 to 255)
TURN = 1 << 12  # a full turn, in steps of the sine table

# No entry lies near a rounding tie, so a sine that is off in its last bit still gives this table (tested).
_SINE = np.round(ONE * np.sin(np.arange(TURN) * (2 * np.pi / TURN))).astype(np.int32)


def _mix(x: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): a bijection of 64-bit integers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class Draws:
    """Random integers for n scenes at once, each scene's a function of its own key and of how many it drew before.

    Every method returns an array (n, *shape). NumPy's own distributions may change between versions; these cannot.

    Args:
        keys: (n,) uint64.
    """

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = keys
        self.drawn = 0

    def bits(self, *shape: int) -> np.ndarray:
        """64 random bits each, uint64."""
        count = int(np.prod(shape, dtype=np.int64))
        counter = np.arange(self.drawn + 1, self.drawn + count + 1, dtype=np.uint64)
        self.drawn += count
        return _mix(self.keys[:, None] + counter * np.uint64(0x9E3779B97F4A7C15)).reshape(len(self.keys), *shape)

    def below(self, bound: int, *shape: int) -> np.ndarray:
        """Uniform integers from 0 to bound - 1, int32."""
        return ((self.bits(*shape) >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int32)

    def between(self, low: float, high: float, *shape: int) -> np.ndarray:
        """Uniform fixed-point numbers in [low, high), in units of 1 / ONE."""
        low, high = round(low * ONE), round(high * ONE)
        return low + self.below(high - low, *shape)

    def normal(self, *shape: int) -> np.ndarray:
        """Nearly normal fixed-point numbers of mean 0 and deviation 1, in units of 1 / ONE: sums of eight bytes."""
        bits = self.bits(*shape)
        even = np.uint64(0x00FF00FF00FF00FF)
        pairs = (bits & even) + ((bits >> np.uint64(8)) & even)
        total = (pairs * np.uint64(0x0001000100010001)) >> np.uint64(48)
        deviation = 209.02  # of the sum: sqrt(8 * (256**2 - 1) / 12)
        return (total.astype(np.int32) - 8 * 255 // 2) * round(ONE / deviation)

    def colours(self, count: int) -> np.ndarray:
        """Uniform RGB colours (n, count, 3) in units of 1 / LEVEL."""
        return self.below(255 * LEVEL + 1, count, 3)

    def fork(self, rows: np.ndarray) -> "Draws":
        """Independent draws for the scenes of the given rows."""
        return Draws(self.bits()[rows])


def scene_draws(drawing: np.ndarray, rendering: np.ndarray) -> Draws:
    """Return the draws that belong to pairs of a drawing (n,) and a rendering number (n,), both below 2**32."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    return Draws(_mix(_mix(np.asarray(drawing, np.uint64) + golden) + np.asarray(rendering, np.uint64)))


def cosine(angle: np.ndarray) -> np.ndarray:
    return _SINE[(angle + TURN // 4) % TURN]


def sine(angle: np.ndarray) -> np.ndarray:
    return _SINE[angle % TURN]


def to_images(x: np.ndarray) -> np.ndarray:
    """One number per scene (n,) as (n, 1, 1), to meet images."""
    return x[:, None, None]


# ------------------------------------------------------------------------------------------------------- backgrounds


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


# ------------------------------------------------------------------------------------------------------------- scenes


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
