"""Pixels on their way to the device: as bytes, a quarter of their size as floats, normalised there."""

from collections.abc import Callable
from typing import Any

import torch
import torchvision.transforms as T
from torch import Tensor


def bytes_transform(transform: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Callable | None:
    """Return the transform that gives the same images as bytes, to be normalised by `Normalize`, bit for bit the same.

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


class Normalize:
    """Images as bytes to normalised floats, on their device; floats are taken for normalised already.

    Args:
        mean, std: of RGB in 0..1.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """Return `(B, 3, H, W)` in fp32, with the very operations of torchvision's `ToTensor` and `Normalize`."""
        if images.dtype != torch.uint8:
            return images
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        return images.float().div_(255).sub_(self._mean).div_(self._std)
