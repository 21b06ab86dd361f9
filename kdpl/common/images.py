"""Reading images of any orientation, colour mode, transparency or bit depth as RGB.

A plain RGB file without an EXIF orientation gives exactly the pixels of `Image.open(path).convert("RGB")`.
"""

import importlib
import io
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from kdpl.common.files import atomic_write
from kdpl.common.image_files import HEIF_SUFFIXES, kind_of
from kdpl.common.messages import short_reason
from kdpl.common.safe_text import on_one_line

LONGEST = 20  # longer edge over shorter: what is longer is cut before it is resized, see `cut_extreme`
BAD_IMAGES = "bad_images.txt"  # in the output folder: the unreadable images
ORIENTATION = 0x0112  # the EXIF tag


class BadImageError(ValueError):
    """A file or an array cannot be read as an image."""


def open_image(path: str | os.PathLike, least: int = 0, data: bytes | None = None) -> Image.Image:
    """Return an image file in RGB and upright; the first frame of an animation, transparency on white.

    All formats of Pillow are read (JPEG, PNG, WebP, TIFF, ...), and HEIC if the package pillow-heif is installed.

    Args:
        least: decode a JPEG at a half, a quarter or an eighth of its size, as small as its shorter edge stays at least that
            many pixels; 0: at its full size.
        data: the content of the file, if it was read before.

    Raises:
        BadImageError: the file is missing, empty, truncated, implausibly large or not an image; the message names path and
            reason.
    """

    def take(image: Image.Image) -> Image.Image:
        if least:
            image.draft(None, (least, least))
        return to_rgb(image)

    return _read(path, take, data)


def _read(path: str | os.PathLike, take: Callable[[Image.Image], Any], data: bytes | None = None) -> Any:
    _register_heif()
    try:
        if data is None:
            refuse_special_files(path)
        with Image.open(path if data is None else io.BytesIO(data)) as image:
            return take(image)
    except BadImageError:
        raise
    except Exception as error:  # Pillow's decoders share no base exception
        raise BadImageError(f"'{on_one_line(str(path))}' cannot be read as an image: {_reason(path, error)}") from error


def refuse_special_files(path: str | os.PathLike) -> None:
    """Raise a BadImageError for a path that is not a regular file: opening a FIFO would wait for ever.

    Raises:
        OSError: there is no such file, or a link leads nowhere.
    """
    if kind := kind_of(os.stat(path).st_mode):
        raise BadImageError(f"'{on_one_line(str(path))}' cannot be read as an image: {kind}.")


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image in RGB and upright; transparency becomes white, 16 bits are scaled to 8.

    Raises:
        ValueError: the pixels are floats, whose range is unknown.
    """
    upright = ImageOps.exif_transpose(image) if _is_turned(image) else image
    if upright.mode == "F":
        raise ValueError("its pixels are floats of unknown range; save it with 8 or 16 bits")
    if upright.mode == "I" or upright.mode.startswith("I;"):  # Pillow opens 16-bit files in either mode
        return Image.fromarray(_eight_bits(np.asarray(upright).clip(0, 65535))).convert("RGB")
    if upright.has_transparency_data:
        upright = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright).convert("RGB")
    return upright.convert("RGB")


def cut_extreme(image: Image.Image) -> Image.Image:
    """Return the middle of an image that is more than `LONGEST` times as long as it is wide, and any other as it is.

    Resized whole, a line of 60,000 x 1 pixels would fill gigabytes, for a square of its middle.
    """
    width, height = image.size
    longest = LONGEST * min(image.size)
    if max(image.size) <= longest:
        return image
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def as_image(image: str | os.PathLike | Image.Image | np.ndarray | Tensor) -> Image.Image:
    """Return a path, image, array or tensor as an RGB image.

    Args:
        image: a path; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); or a tensor (H, W), (1, H, W),
            (3, H, W) or (4, H, W). Arrays and tensors are uint8, uint16, or floats in 0..1.

    Raises:
        BadImageError: the file cannot be read, or the shape, type or range is none of these.
        TypeError: the argument is none of these.
    """
    if isinstance(image, str | os.PathLike):
        return open_image(image)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as error:  # of a file that Pillow opened and reads only now
            raise BadImageError(f"A PIL image of {image.size} cannot be read: {short_reason(error)}.") from error
    if isinstance(image, Tensor):
        array = image.detach().cpu().float().numpy() if image.is_floating_point() else image.detach().cpu().numpy()
        array = np.moveaxis(array, 0, -1) if array.ndim == 3 else array  # (C, H, W) to (H, W, C)
    elif isinstance(image, np.ndarray):
        array = image
    else:
        raise TypeError(f"{type(image).__name__} is not an image: expected a path, a PIL image, a NumPy array or a tensor.")
    return to_rgb(Image.fromarray(_pixels(array, type(image).__name__)))


def is_one_image(images: object) -> bool:
    """Whether the argument is one image, as `as_image` takes it, rather than several."""
    if isinstance(images, np.ndarray | Tensor):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | Image.Image)


def unreadable(paths: Iterable[Path], decode: bool) -> dict[Path, str]:
    """Return the files that cannot be read as images, each with the reason.

    Args:
        decode: decode whole files; False: read the headers only, which is quick and does not find truncated files.
    """

    def reason(path: Path) -> str:
        try:
            _read(path, to_rgb if decode else Image.Image.getbands)
        except BadImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {path: why for path, why in zip(paths, pool.map(reason, paths), strict=True) if why}


def write_bad_images(folder: str | os.PathLike, reasons: Sequence[str], more: bool = False) -> None:
    """Write the list of unreadable images into an output folder, one a line; no file if there are none.

    Args:
        more: add to the existing list.
    """
    path = Path(folder, BAD_IMAGES)
    lines = [*map(on_one_line, reasons)]
    text = {"encoding": "utf-8", "errors": "surrogateescape"}
    if more:
        listed = set(path.read_text(**text).splitlines()) if path.is_file() else set()  # by another or an earlier process
        with open(path, "a", **text) as file:
            file.write("".join(f"{line}\n" for line in lines if line not in listed))
    elif lines:
        with atomic_write(path, "w", **text) as file:
            file.write("\n".join([*lines, ""]))
    else:
        path.unlink(missing_ok=True)


@cache
def _register_heif() -> None:
    """Make Pillow read HEIC, if pillow-heif is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if not os.path.isfile(path):
        return "it is a link that leads nowhere." if os.path.islink(path) else "there is no such file."
    if isinstance(error, MemoryError):
        return "it needs more memory than there is."
    if os.path.getsize(path) == 0:
        return "the file is empty."
    if isinstance(error, Image.DecompressionBombError):
        return (
            f"it claims more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels. Make it smaller, or raise the limit (predict "
            "--max-pixels; in Python PIL.Image.MAX_IMAGE_PIXELS)."
        )
    if isinstance(error, UnidentifiedImageError):
        missing = Path(path).suffix.lower() in HEIF_SUFFIXES and not {"HEIF", "HEIC"} & set(Image.OPEN)
        return "HEIC needs the package pillow-heif (pip install 'kdpl[heic]')." if missing else "unknown image format."
    # Pillow counts the bytes of a truncated file, which would make every one its own kind
    return "the file is truncated." if "truncated" in str(error).lower() else f"{short_reason(error)}."


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF raises many kinds of errors, and the pixels may still be intact
        return False


def _eight_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 0..65535 to 0..255, rounded


def _pixels(array: np.ndarray, kind: str) -> np.ndarray:
    """Return the pixels of an array as uint8, (H, W) or (H, W, 3 or 4)."""
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    layout = "(3, H, W)" if kind == "Tensor" else "(H, W, 3)"
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)) or array.size == 0:
        raise BadImageError(f"{kind} of shape {_shape(array, kind)} is not an image: expected {layout}, or 1 or 4 channels.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype == np.uint16:
        return _eight_bits(array)
    if not np.issubdtype(array.dtype, np.floating):
        raise BadImageError(f"{kind} of type {array.dtype} is not an image: expected uint8, uint16 or floats in 0..1.")
    if not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
        raise BadImageError(f"{kind} of floats in {array.min():.4g}..{array.max():.4g} is not an image: expected 0..1.")
    return (array * 255).round().astype(np.uint8)


def _shape(array: np.ndarray, kind: str) -> tuple[int, ...]:
    return tuple(np.moveaxis(array, -1, 0).shape) if kind == "Tensor" and array.ndim == 3 else array.shape
