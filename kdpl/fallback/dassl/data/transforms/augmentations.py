"""The augmentations that torchvision does not have; all draw from PyTorch's generator, as torchvision's do."""

import torch
import torchvision.transforms.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms import InterpolationMode, RandomCrop


class RandomTranslation(nn.Module):
    """With probability `p`, enlarge the image by an eighth over the target size and crop a random window of that size.

    Args:
        size: height and width of the result; an image that is not moved is resized to it.
        p: the probability.
        interpolation: how to resize.
    """

    def __init__(self, size: tuple[int, int], p: float, interpolation: InterpolationMode):
        super().__init__()
        self.size = list(size)
        self.p = p
        self.interpolation = interpolation

    def forward(self, image: Image.Image) -> Image.Image:
        if torch.rand(1) >= self.p:
            return F.resize(image, self.size, self.interpolation)
        larger = F.resize(image, [round(1.125 * side) for side in self.size], self.interpolation)
        return F.crop(larger, *RandomCrop.get_params(larger, self.size))

    def extra_repr(self) -> str:
        return f"size={tuple(self.size)}, p={self.p}, interpolation={self.interpolation.value}"


class Cutout(nn.Module):
    """Set random squares of an image tensor to 0 (DeVries and Taylor, arXiv:1708.04552).

    A square's centre lies anywhere in the image, so squares at the border are smaller.

    Args:
        n_holes: how many squares.
        length: their side in pixels.
    """

    def __init__(self, n_holes: int, length: int):
        super().__init__()
        self.n_holes = n_holes
        self.length = length

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        image = image.clone()  # (channels, H, W)
        for _ in range(self.n_holes):
            top, left = (int(torch.randint(side, (1,))) - self.length // 2 for side in image.shape[-2:])
            image[..., max(top, 0) : max(top + self.length, 0), max(left, 0) : max(left + self.length, 0)] = 0
        return image

    def extra_repr(self) -> str:
        return f"n_holes={self.n_holes}, length={self.length}"


class GaussianNoise(nn.Module):
    """With probability `p`, add independent Gaussian noise to every value of an image tensor.

    Args:
        mean: mean of the noise.
        std: standard deviation of the noise.
        p: the probability.
    """

    def __init__(self, mean: float, std: float, p: float = 0.5):
        super().__init__()
        self.mean = mean
        self.std = std
        self.p = p

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        if torch.rand(1) >= self.p:
            return image
        return image + self.mean + self.std * torch.randn_like(image)

    def extra_repr(self) -> str:
        return f"mean={self.mean}, std={self.std}, p={self.p}"
