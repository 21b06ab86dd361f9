"""Random integers that are the same on every machine, and the units of the scene generator.

Everything is integer arithmetic on a counter-based random generator. The units are chosen so that products fit 32 bits,
which is several times faster than 64.
"""

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
