"""Images from file to device: moved as bytes, a quarter of the size of floats, and normalised on the device."""

import os
import stat
import sys
from collections.abc import Callable
from typing import Any

import torchvision.transforms as T
from PIL import Image
from torch.utils.data import Dataset

from kdpl.common.messages import short_reason


def read_image(path: str | os.PathLike) -> Image.Image:
    """Return the image of a file as an RGB PIL image.

    Raises:
        FileNotFoundError: there is no file at `path`.
        OSError: the file is empty, damaged, implausibly large or of a format that Pillow does not read.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would be waited for, for ever
            raise OSError("it is not a regular file")
        with Image.open(path) as image:
            return image.convert("RGB")
    except FileNotFoundError:
        raise FileNotFoundError(f"No image at '{path}'. Check DATASET.ROOT and the data set's folder.") from None
    except Exception as error:  # Pillow's decoders share no base exception
        reason = "the file is empty" if os.path.isfile(path) and not os.path.getsize(path) else short_reason(error)
        raise OSError(f"'{path}' cannot be read as an image ({reason}). Extract or download it again.") from error


class ReadableImages(Dataset):
    """A Dassl data set whose images are read by `read_image`.

    In many versions Dassl's own reader retries a damaged file for ever, and in none does it name the file.

    Args:
        dataset: a `DatasetWrapper`, or an object like it.
    """

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        module = sys.modules[type(self.dataset).__module__]
        if getattr(module, "read_image", read_image) is not read_image:
            module.read_image = read_image
        return self.dataset[index]


def bytes_transform(transform: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable | None:
    """Return the same transform with uint8 output, which `Normalize` turns into bit-identical floats.

    Args:
        transform: from a PIL image to a normalised tensor (3, H, W).
        mean, std: of RGB in 0..1, what it normalises with.

    Returns:
        A transform to a uint8 tensor (3, H, W); None where `transform` does something between the conversion to a tensor and
        the normalisation, or after it, so that only floats can carry the result.
    """
    if not isinstance(transform, T.Compose) or len(transform.transforms) < 2:
        return None
    *steps, to_tensor, normalize = transform.transforms
    if type(to_tensor) is not T.ToTensor or type(normalize) is not T.Normalize:
        return None
    if tuple(normalize.mean) != tuple(mean) or tuple(normalize.std) != tuple(std):
        return None
    return T.Compose([*steps, T.PILToTensor()])


def apply_crop_scale(transform: Any, scale: tuple[float, float]) -> None:
    """Let the random resized crops of a transform, in place, have INPUT.RRCROP_SCALE, which an older Dassl does not read."""
    for step in getattr(transform, "transforms", ()):
        if isinstance(step, T.RandomResizedCrop):
            step.scale = tuple(scale)
