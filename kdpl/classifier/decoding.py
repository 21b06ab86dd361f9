"""Images to pixels for a classifier: decoded and resized in threads, ahead of the model."""

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor

from kdpl.clip.preprocessing import Preprocessing
from kdpl.common import sources
from kdpl.common.files import file_key
from kdpl.common.images import BadImageError, as_image, cut_extreme, is_one_image, open_image
from kdpl.common.messages import short_reason
from kdpl.common.safe_text import on_one_line

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier
    from kdpl.common.features import FeatureFile

OnBad: TypeAlias = Callable[[Any, BadImageError], None]

BATCH_SIZE = 64
WORKERS = min(8, os.cpu_count() or 1)
PROMISE = 0.01  # the most by which a probability may differ
TOLERANCE = PROMISE / 2  # in the sample
SAMPLE = 8, 16  # photos, at least and at most: two alike photos may say nothing about the next one
SHARE = 10  # of so many photos one is sampled
LOOKED_AT = 64  # photos whose headers are read, to find large ones
FACTORS = (1, 2, 4)  # of the input's side: what the shorter edge keeps at least


@dataclass
class Decoded:
    """An image on its way to the model: its pixels (3, H, W) as bytes, or the key of features that are known."""

    image: Any
    pixels: Tensor | None = None
    key: bytes | None = None
    error: BadImageError | None = None
    seconds: float = 0.0


class Decoder:
    """Images of any kind to batches of pixels as bytes.

    Args:
        preprocessing: how an image is resized.

    Attributes:
        seconds: time spent so far, by what: "decoding" (reading and resizing, summed over the threads), "waiting" (for
            images that were not decoded yet) and "model", which the classifier adds.
        least: JPEG files may be decoded at a fraction of their size if the shorter edge keeps this many pixels; 0: never.
        known: features by `file_key`; an image file that is among them is not read.
    """

    def __init__(self, preprocessing: Preprocessing):
        self.size = preprocessing.size
        self._transform = T.Compose([cut_extreme, *preprocessing.resize_steps(), T.PILToTensor()])
        self.seconds = {"decoding": 0.0, "waiting": 0.0, "model": 0.0}
        self.least = 0
        self.known: FeatureFile | None = None

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
    ) -> Iterator[list[Decoded]]:
        """Yield batches of decoded images, decoded in threads at most two batches ahead.

        Args:
            on_bad: called with an image that cannot be read and the error, and the image is left out; None: it is raised.
        """
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size {batch_size}, workers {workers}: expected at least 1 image, and 0 or more threads.")
        decoded = self._decoded([images] if is_one_image(images) else images, 2 * batch_size, workers)
        try:
            batch: list[Decoded] = []
            while True:
                with self.timed("waiting"):
                    item = next(decoded, None)
                if item is not None:
                    self.seconds["decoding"] += item.seconds
                    if item.error is None:
                        batch.append(item)
                    elif on_bad is None:
                        raise item.error
                    else:
                        on_bad(item.image, item.error)
                if len(batch) == batch_size or (item is None and batch):
                    yield batch
                    batch = []
                if item is None:
                    return
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
        start, result = time.perf_counter(), Decoded(image)
        try:
            if isinstance(image, str | os.PathLike):
                self._decode_file(image, result)
            else:
                result.pixels = self._transform(as_image(image))
        except BadImageError as error:
            result.error = error
        except (OSError, MemoryError) as error:
            result.error = BadImageError(f"'{on_one_line(str(image))}' cannot be read as an image: {short_reason(error)}.")
        result.seconds = time.perf_counter() - start
        return result

    def _decode_file(self, path: str | os.PathLike, result: Decoded) -> None:
        if self.known is not None:
            with _missing_as_bad(path):
                result.key = file_key(path)
            if result.key in self.known:
                return
        result.pixels = self._transform(open_image(path, self.least))


@contextmanager
def _missing_as_bad(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else short_reason(error)
        raise BadImageError(f"'{on_one_line(str(path))}' cannot be read as an image: {reason}.") from error


def stacked_pixels(batch: list[Decoded]) -> Tensor:
    """Return the pixels (B, 3, H, W) of decoded images."""
    return torch.stack([item.pixels for item in batch])


class Chosen(NamedTuple):
    """At which size JPEGs are decoded, and what it was chosen by."""

    least: int  # see `Decoder.least`
    sampled: int
    difference: float  # the largest of a probability in the sample

    def words(self) -> str:
        """Return a line about it; empty if nothing was measured."""
        if not self.sampled:
            return ""
        if not self.least:
            return f"Large JPEGs were decoded in full: at a smaller size probabilities differ by up to {self.difference:.3f}"
        return (
            f"Large JPEGs were decoded at a fraction of their size: on {self.sampled} of them no probability differs by more "
            f"than {self.difference:.4f} (--full-size decodes all in full)"
        )


def choose_size(classifier: "Classifier", paths: Sequence[str], cache: "Callable[[int], FeatureFile] | None" = None) -> Chosen:
    """Return at which size JPEGs among these images should be decoded.

    A JPEG can be decoded at a half, a quarter or an eighth of its size in a fraction of the time. What that does to the
    probabilities is measured in each run: some of its own photos, spread over all, are predicted both ways, and the smallest
    size is taken whose probabilities differ by at most `TOLERANCE`, a half of what is promised. Without such a size, JPEGs are
    decoded in full.

    Args:
        cache: of image features, by `Decoder.least`.
    """
    decoder, side = classifier.decoder, max(classifier.decoder.size)
    least, most = SAMPLE
    sample = _large_jpegs(paths, 2 * side)[: min(most, len(paths) // SHARE)]
    if len(sample) < least:  # it would say too little, or take as long as it saves
        return Chosen(0, 0, 0.0)
    before = decoder.least, decoder.known

    def probabilities(least: int) -> torch.Tensor:
        decoder.least, decoder.known = least, cache(least) if cache else None
        return classifier(sample)

    try:
        exact, difference = probabilities(0), 0.0
        for factor in FACTORS:
            difference = float((probabilities(factor * side) - exact).abs().max())
            if difference <= TOLERANCE:
                return Chosen(factor * side, len(sample), difference)
        return Chosen(0, len(sample), difference)
    except BadImageError:  # one of the sample cannot be read: it is reported when its turn comes
        return Chosen(0, 0, 0.0)
    finally:
        decoder.least, decoder.known = before


def _large_jpegs(paths: Sequence[str], least: int) -> list[str]:
    """Return JPEGs spread over all images whose shorter edge has at least that many pixels."""
    step = max(1, len(paths) // LOOKED_AT)
    found = []
    for path in paths[::step][:LOOKED_AT]:
        if str(path).lower().endswith((".jpg", ".jpeg", ".jfif")) and sources.exists(path):
            try:
                with Image.open(sources.opened(path)) as image:
                    if image.format in ("JPEG", "MPO") and min(image.size) >= least:
                        found.append(path)
            except Exception:  # of many kinds: it is reported when its turn comes
                continue
    return found[:: max(1, len(found) // SAMPLE[1])]
