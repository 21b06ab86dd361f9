"""Images to pixels for a classifier: decoded and resized in threads, ahead of the model."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torchvision.transforms as T
from torch import Tensor

from kdpl.clip.preprocessing import Preprocessing
from kdpl.common.files import file_key
from kdpl.common.images import BadImageError, as_image, cut_extreme, is_one_image, open_image
from kdpl.common.messages import short_reason
from kdpl.common.safe_text import on_one_line

if TYPE_CHECKING:
    from kdpl.common.tensor_files import FeatureFile

OnBad: TypeAlias = Callable[[Any, BadImageError], None]

BATCH_SIZE = 64
WORKERS = min(8, os.cpu_count() or 1)
LEAST = 2  # times the input's side: what the shorter edge of a JPEG keeps at least when it is decoded at a part of its size


@dataclass
class Decoded:
    """An image on its way to the model: its pixels (3, H, W) as bytes, or the key of features that are known."""

    image: Any
    pixels: Tensor | None = None
    key: bytes | None = None
    error: BadImageError | None = None


class Decoder:
    """Images of any kind to batches of pixels as bytes.

    Args:
        preprocessing: how an image is resized.

    Attributes:
        least: JPEG files are decoded at a half, a quarter or an eighth of their size if the shorter edge keeps so many pixels.
        known: features by `file_key`; an image file that is among them is not read.
    """

    def __init__(self, preprocessing: Preprocessing):
        self._transform = T.Compose([cut_extreme, *preprocessing.resize_steps(), T.PILToTensor()])
        self.least = LEAST * max(preprocessing.size)
        self.known: FeatureFile | None = None

    def batches(
        self, images: Any, batch_size: int, workers: int = WORKERS, on_bad: OnBad | None = None
    ) -> Iterator[list[Decoded]]:
        """Yield batches of decoded images, decoded in threads at most two batches ahead.

        Args:
            on_bad: called with an image that cannot be read and the error, and the image is left out; None: it is raised.
        """
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size {batch_size}, workers {workers}: expected at least 1 image, and 0 or more threads.")
        decoded = self._decoded([images] if is_one_image(images) else images, 2 * batch_size, workers)
        batch: list[Decoded] = []
        try:
            for item in decoded:
                if item.error is None:
                    batch.append(item)
                elif on_bad is None:
                    raise item.error
                else:
                    on_bad(item.image, item.error)
                if len(batch) == batch_size:
                    yield batch
                    batch = []
            if batch:
                yield batch
        finally:
            decoded.close()

    def _decoded(self, images: Iterable[Any], ahead: int, workers: int) -> Iterator[Decoded]:
        if not workers:
            yield from map(self._decode, images)
            return
        pool = ThreadPoolExecutor(workers, "decode")
        images = iter(images)
        try:
            waiting: deque[Future[Decoded]] = deque()
            while True:
                waiting.extend(pool.submit(self._decode, image) for image in islice(images, ahead - len(waiting)))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, image: Any) -> Decoded:
        result, is_path = Decoded(image), isinstance(image, str | os.PathLike)
        if is_path and self.known is not None:
            with suppress(OSError, ValueError):  # reading it says what is wrong
                result.key = file_key(image)
            if result.key in self.known:
                return result
        try:
            result.pixels = self._transform(open_image(image, self.least) if is_path else as_image(image))
        except BadImageError as error:
            result.error = error
        except (OSError, MemoryError) as error:
            result.error = BadImageError(f"'{on_one_line(str(image))}' cannot be read as an image: {short_reason(error)}.")
        return result


def stacked_pixels(batch: list[Decoded]) -> Tensor:
    """Return the pixels (B, 3, H, W) of decoded images."""
    return torch.stack([item.pixels for item in batch])
