"""Image files below a folder, and reading them as RGB: of any orientation, colour mode, transparency or bit depth.

A plain RGB file without an EXIF orientation gives exactly the pixels of `Image.open(path).convert("RGB")`. Loops of links,
FIFOs and unreadable folders stop nothing.
"""

import importlib
import os
from collections import Counter, deque
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from kdpl.common import sources
from kdpl.common.files import RECORD
from kdpl.common.messages import short_reason
from kdpl.common.safe_text import on_one_line
from kdpl.common.sources import HEIF_SUFFIXES, SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

LONGEST = 20  # longer edge over shorter: what is longer is cut before it is resized, see `cut_extreme`
ORIENTATION = 0x0112  # the EXIF tag


class BadImageError(ValueError):
    """A file or an array cannot be read as an image."""


@dataclass
class Listing:
    """What lies below a folder.

    Attributes:
        images: regular files with the suffix of an image, or without a suffix and with the first bytes of a JPEG or PNG.
        unreadable: entries that should be read and cannot be, each with the reason.
        others: how many entries are passed over, by suffix; "" counts hidden ones, and folders of ours or listed already.
    """

    images: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)


def list_images(folder: str | os.PathLike) -> Listing:
    """Return what lies at any depth below a folder; every folder is listed once, also if links lead to it.

    Images are recognised by their suffix, and sorted by code points. A hidden entry, whose name begins with a dot, counts as
    one other file, and so does a folder that a command has written, such as the thumbnails of a gallery. Instead of a folder
    there may be shards or a data set (`sources`); of a folder without images the tar files are shards.

    Raises:
        OSError: `folder` itself cannot be listed.
        SourceError: there are no such shards, or no such data set.
    """
    if sources.is_source(folder):
        return Listing(*sources.photos_of(folder))
    listing, folder, shards = Listing(), Path(folder), []
    seen: set[tuple[int, int]] = set()  # device and inode of the folders
    waiting, links = deque([folder]), deque()  # links last: a folder is listed under its own path
    while waiting or links:
        current = (waiting or links).popleft()
        try:
            status, entries = os.stat(current), sorted(os.scandir(current), key=lambda entry: entry.name)
        except OSError as error:
            if current == folder:
                raise
            listing.unreadable[current] = f"'{current}' cannot be listed: {error.strerror}."
            continue
        ours = current != folder and any(entry.name == RECORD for entry in entries)
        if ours or (status.st_dev, status.st_ino) in seen:
            listing.others[""] += 1
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            path, suffix = current / entry.name, os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                listing.others[""] += 1
            elif os.path.isdir(entry):
                (links if entry.is_symlink() else waiting).append(path)
            elif os.path.isfile(entry) and (suffix in SUFFIXES or (not suffix and _begins_like_an_image(path))):
                listing.images.append(path)
            elif suffix in SUFFIXES:
                what = "it is not a regular file" if os.path.exists(path) else "it is a link that leads nowhere"
                listing.unreadable[path] = f"'{path}' cannot be read as an image: {what}."
            else:
                listing.others[suffix] += 1
                shards += [path] if suffix == sources.TAR else []
    if shards and not listing.images:
        del listing.others[sources.TAR]
        images, unreadable, others = sources.in_shards(folder, sorted((path, str(path.relative_to(folder))) for path in shards))
        return Listing(images, listing.unreadable | unreadable, listing.others + others)
    listing.images.sort(key=lambda path: path.parts)
    return listing


def _begins_like_an_image(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(8).startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))
    except OSError:
        return False


def others_line(others: Counter[str]) -> str:
    """Return one line about files of kinds that are not read, "5 .CR2, 2 .MOV", the most frequent; empty if there are none."""
    kinds = [(count, suffix) for suffix, count in others.most_common(6) if suffix and count]
    return ", ".join(f"{count:,} {on_one_line(suffix.upper())}" for count, suffix in kinds)


def open_image(path: str | os.PathLike, least: int = 0) -> Image.Image:
    """Return an image file in RGB and upright; the first frame of an animation, transparency on white.

    All formats of Pillow are read (JPEG, PNG, WebP, TIFF, ...), and HEIC if the package pillow-heif is installed.

    Args:
        least: decode a JPEG at a half, a quarter or an eighth of its size, as small as its shorter edge stays at least that
            many pixels; 0: at its full size.

    Raises:
        BadImageError: the file is missing, empty, truncated, implausibly large or not an image; the message names path and
            reason.
    """

    return _read(path, least)


def _read(path: str | os.PathLike, least: int = 0, decode: bool = True) -> Image.Image | None:
    _register_heif()
    try:
        with Image.open(sources.opened(path)) as image:
            if least:
                image.draft(None, (least, least))
            return to_rgb(image) if decode else None
    except Exception as error:  # Pillow's decoders share no base exception
        raise BadImageError(f"'{on_one_line(str(path))}' cannot be read as an image: {_reason(path, error)}") from error


def _reason(path: str | os.PathLike, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file."
    if isinstance(error, Image.DecompressionBombError):
        return f"it claims more than {2 * Image.MAX_IMAGE_PIXELS:,} pixels: make it smaller."
    if type(error) is ValueError:  # of ours
        return f"{error}."
    if sources.stamp(path)[0] == 0:
        return "the file is empty."
    if isinstance(error, UnidentifiedImageError):
        needs_heif = Path(path).suffix.lower() in HEIF_SUFFIXES and "HEIF" not in Image.OPEN
        return "HEIC needs the package pillow-heif (pip install 'kdpl[heic]')." if needs_heif else "unknown image format."
    # Pillow counts the bytes of a truncated file, which would make every one its own kind
    return "the file is truncated." if "truncated" in str(error).lower() else f"{short_reason(error)}."


@cache
def _register_heif() -> None:
    """Make Pillow read HEIC, if pillow-heif is installed."""
    try:
        importlib.import_module("pillow_heif").register_heif_opener()
    except ImportError:
        return


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


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(ORIENTATION, 1) != 1
    except Exception:  # damaged EXIF raises many kinds of errors, and the pixels may still be intact
        return False


def _eight_bits(array: np.ndarray) -> np.ndarray:
    return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 0..65535 to 0..255, rounded


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


def as_image(image: "str | os.PathLike | Image.Image | np.ndarray | Tensor") -> Image.Image:
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
    kind, layout, array = type(image).__name__, "(H, W, 3)", image
    if _is_tensor(image):
        array = (image.float() if image.is_floating_point() else image).detach().cpu().numpy()
        layout, array = "(3, H, W)", np.moveaxis(array, 0, -1) if array.ndim == 3 else array  # (C, H, W) to (H, W, C)
    if not isinstance(array, np.ndarray):
        raise TypeError(f"{kind} is not an image: expected a path, a PIL image, a NumPy array or a tensor.")
    has_shape = array.size and (array.ndim == 2 or (array.ndim == 3 and array.shape[-1] in (1, 3, 4)))
    floats = np.issubdtype(array.dtype, np.floating)
    if not has_shape or not (floats or array.dtype in (np.uint8, np.uint16)):
        expected = f"expected {layout}, or 1 or 4 channels, of uint8, uint16 or floats"
        raise BadImageError(f"{kind} of shape {tuple(image.shape)} and type {array.dtype} is not an image: {expected}.")
    if floats:
        if not (array.min() >= 0 and array.max() <= 1):  # which NaN is not
            raise BadImageError(f"{kind} of floats in {array.min():.4g}..{array.max():.4g} is not an image: expected 0..1.")
        array = (array * 255).round().astype(np.uint8)
    elif array.dtype == np.uint16:
        array = _eight_bits(array)
    return to_rgb(Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array)))


def is_one_image(images: object) -> bool:
    """Whether the argument is one image, as `as_image` takes it, rather than several."""
    if isinstance(images, np.ndarray) or _is_tensor(images):
        return images.ndim < 4
    return isinstance(images, str | os.PathLike | Image.Image)


def _is_tensor(image: object) -> bool:
    return hasattr(image, "is_floating_point")  # PyTorch, which takes seconds, is not imported to list images


def unreadable(paths: Iterable[Path], decode: bool) -> dict[Path, str]:
    """Return the files that cannot be read as images, each with the reason.

    Args:
        decode: decode whole files; False: read the headers only, which is quick and does not find truncated files.
    """

    def reason(path: Path) -> str:
        try:
            _read(path, decode=decode)
        except BadImageError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {path: why for path, why in zip(paths, pool.map(reason, paths), strict=True) if why}
