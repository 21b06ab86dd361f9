"""Renditions of drawings by filters of our own, in integer arithmetic: pixel art and embroidery."""

import numpy as np

_SHINE = np.array((190, 240, 256, 225), np.int32)  # across a thread of four pixels, in 256ths
_STITCH = 12  # pixels from one end of a stitch to the next


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
