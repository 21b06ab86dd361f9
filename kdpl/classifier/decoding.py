"""Images to pixels for a classifier: decoded and resized in threads, ahead of the model."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeAlias

import torch
import torchvision.transforms as T
from torch import Tensor

from kdpl.clip.inputs import Preprocessing
from kdpl.common.images import BadImageError, as_image, is_one_image

OnBad: TypeAlias = Callable[[Any, BadImageError], None]

BATCH_SIZE = 64
WORKERS = min(8, os.cpu_count() or 1)


class Decoder:
    """Images of any kind to batches of pixels as bytes.

    Args:
        preprocessing: how an image is resized.

    Attributes:
        seconds: time spent so far, by what: "decoding" (reading and resizing, summed over the threads), "waiting" (for
            images that were not decoded yet) and "model", which the classifier adds.
    """

    def __init__(self, preprocessing: Preprocessing):
        self._transform = T.Compose([*preprocessing.resize_steps(), T.PILToTensor()])
        self.seconds = {"decoding": 0.0, "waiting": 0.0, "model": 0.0}

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time that passes inside to `seconds`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    def batches(
        self, images: Any, batch_size: int, workers: int = WORKERS, on_bad: OnBad | None = None
    ) -> Iterator[tuple[list[Any], Tensor]]:
        """Yield images and their pixels (B, 3, H, W) as bytes, decoded in threads at most two batches ahead."""
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size {batch_size}, workers {workers}: expected at least 1 image, and 0 or more threads.")
        decoded = self._decoded([images] if is_one_image(images) else images, 2 * batch_size, workers)
        try:
            batch, pixels = [], []
            while True:
                with self.timed("waiting"):
                    item = next(decoded, None)
                if item is not None:
                    image, result = item
                    if isinstance(result, BadImageError):
                        if on_bad is None:
                            raise result
                        on_bad(image, result)
                    else:
                        batch.append(image)
                        pixels.append(result)
                if len(batch) == batch_size or (item is None and batch):
                    yield batch, torch.stack(pixels)
                    batch, pixels = [], []
                if item is None:
                    return
        finally:
            decoded.close()

    def _decoded(self, images: Iterable[Any], ahead: int, workers: int) -> Iterator[tuple[Any, Tensor | BadImageError]]:
        if not workers:
            yield from ((image, self._counted(self._decode(image))) for image in images)
            return
        pool = ThreadPoolExecutor(workers, "decode")
        images = iter(images)
        try:
            waiting: deque[tuple[Any, Future]] = deque()
            while True:
                waiting.extend((image, pool.submit(self._decode, image)) for image in islice(images, ahead - len(waiting)))
                if not waiting:
                    return
                image, future = waiting.popleft()
                yield image, self._counted(future.result())
        finally:
            pool.shutdown(cancel_futures=True)

    def _decode(self, image: Any) -> tuple[float, Tensor | BadImageError]:
        """Return how long it took (s), and the pixels (3, H, W) of an image, or why it has none."""
        start = time.perf_counter()
        try:
            result = self._transform(as_image(image))
        except BadImageError as error:
            result = error
        return time.perf_counter() - start, result

    def _counted(self, decoded: tuple[float, Tensor | BadImageError]) -> Tensor | BadImageError:
        seconds, result = decoded
        self.seconds["decoding"] += seconds
        return result
