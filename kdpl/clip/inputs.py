"""The inputs of a CLIP: how an image becomes pixels, how a sentence becomes token ids, and how tensors get to its device."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kdpl.common.messages import shorten
from kdpl.config.keys import INTERPOLATIONS

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZE_MODES = ("shortest", "squash")
LARGEST_SIDE = 4096  # of an image tower's input
PROBES = (  # texts that tokenizers prepare in different ways
    "a photo of a Golden Retriever, a type of dog.",
    "IT'S  42\n&amp; 3,000!",
    "cr\u00e8me br\u00fbl\u00e9e \u2014 \u0130stanbul",
    "don't; (x) [y] #z snow-man_1 \u2603 \u72ac",
)


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of an image tower: resized, RGB in 0..1 normalised.

    The resize mode "shortest" resizes the shorter edge and cuts out the centre, "squash" resizes both edges to `size`.
    """

    size: tuple[int, int]  # height and width
    interpolation: str = "bicubic"  # "bicubic", "bilinear" or "nearest"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resize_mode: str = "shortest"

    def resize_steps(self) -> list[Callable]:
        """Return the transforms from a PIL image of any size to a PIL image of `size`."""
        import torchvision.transforms as T

        mode = T.InterpolationMode(self.interpolation)
        if self.resize_mode == "squash":
            return [T.Resize(self.size, mode)]
        return [T.Resize(max(self.size), mode), T.CenterCrop(self.size)]


def checked_preprocessing(content: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that a file describes; what it leaves out is OpenAI's.

    Args:
        content: `size`, one side or height and width, and the other attributes of `Preprocessing`.

    Raises:
        ValueError: no image can be prepared so; the message names the key, the value and what was expected.
    """

    size = content.get("size")
    pair = tuple(size) if isinstance(size, (list, tuple)) else (size, size)
    if len(pair) != 2 or not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in pair):
        raise ValueError(f"'size' of the preprocessing is {shorten(size)}, expected sides of 1 to {LARGEST_SIDE} pixels")
    defaults = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", "mean": OPENAI_MEAN, "std": OPENAI_STD}
    given = {key: value if content.get(key) is None else content[key] for key, value in defaults.items()}
    for key, choices in (("mode", ("RGB",)), ("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if given[key] not in choices:
            raise ValueError(f"'{key}' of the preprocessing is {shorten(given[key])}, expected {' or '.join(choices)}")
    for key, low in (("mean", -10), ("std", 0.001)):
        numbers = given[key]
        sound = isinstance(numbers, (list, tuple)) and len(numbers) == 3
        if not sound or not all(type(x) in (int, float) and low <= x <= 10 for x in numbers):
            raise ValueError(
                f"'{key}' of the preprocessing is {shorten(numbers)}, expected three numbers of {low} to 10, of red, green and "
                "blue between 0 and 1"
            )
    mean, std = (tuple(map(float, given[key])) for key in ("mean", "std"))
    return Preprocessing(pair, given["interpolation"], mean, std, given["resize_mode"])


class Normalize:
    """Turns uint8 images into normalised floats on their device; floats count as normalised already.

    Args:
        mean, std: of RGB in 0..1.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """Return `(B, 3, H, W)` in fp32, with the same operations as torchvision's `ToTensor` and `Normalize`."""
        if images.dtype != torch.uint8:
            return images
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        return images.float().div_(255).sub_(self._mean).div_(self._std)


class Tokenizer:
    """Sentences to token ids `[*sot, ..., *eot, pad, pad, ...]` of one length.

    Subclasses give `encode`, `decode` and, if the ids of a whole sentence are more than that, `__call__`.

    Attributes:
        context_length: ids of a sentence.
        sot, eot: ids before and behind those of the text; either may be empty.
        pad: the id that fills up.
        stripped: ids that the model's own tokenizer counts, then replaces by padding.
        special: ids that no text may contain.
    """

    context_length: int
    sot: tuple[int, ...]
    eot: tuple[int, ...]
    pad: int = 0
    stripped: int = 0
    special: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without `sot` and `eot`."""
        raise NotImplementedError

    def decode(self, token: int) -> str:
        """Return the text of one id."""
        raise NotImplementedError

    def vocabulary(self) -> Mapping[str, int]:
        """Return the ids of its pieces of text, as far as they are known."""
        return {}

    @cached_property
    def digest(self) -> str:
        """A digest of the ids that it gives: those of all pieces it knows, and of texts that show how it prepares them."""
        special = {*self.sot, *self.eot, *self.special}
        pieces = sorted((piece, number) for piece, number in self.vocabulary().items() if number not in special)
        texts = [self.encode(text) for text in PROBES]
        facts = [self.context_length, self.sot, self.eot, self.pad, self.stripped, texts, pieces]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def check_length(self, text: str, tokens: int) -> None:
        """Raise a ValueError if a text of so many ids, `sot` and `eot` among them, is longer than the context."""
        tokens += self.stripped
        if tokens > self.context_length:
            raise ValueError(f"'{text}' has {tokens} tokens, the text tower takes {self.context_length}: shorten it.")

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the ids `(N, context_length)` of sentences.

        Raises:
            ValueError: a sentence is longer than the context.
        """
        ids = torch.full((len(texts), self.context_length), self.pad, dtype=torch.long)
        for i, text in enumerate(texts):
            tokens = [*self.sot, *self.encode(text), *self.eot]
            self.check_length(text, len(tokens))
            ids[i, : len(tokens)] = torch.tensor(tokens)
        return ids


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, without waiting for it: to a GPU it is copied from pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def index_on(device: torch.device, values: Sequence) -> Tensor:
    """Return whole numbers, or nested lists of them, as an index on a device, without waiting for it."""
    return moved(torch.tensor(values, dtype=torch.long), device)
