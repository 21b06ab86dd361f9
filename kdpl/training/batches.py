"""The batches of a training set, a function of only the run's seed and the epoch, and the images in them.

The order of an epoch's batches is drawn from generators seeded for that epoch, and an image's augmentation from generators
seeded for that image: a resumed run sees the same images as an uninterrupted one, with any number of workers. Images are moved
as bytes, a quarter of the size of floats, and normalised on the device.
"""

import hashlib
import os
import random
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
import torchvision.transforms as T
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdpl.common import distributed
from kdpl.common.command import leave_signals_to_the_parent, starting_workers
from kdpl.common.messages import short_reason

SEEDS = 2**31  # seeds lie below this: NumPy's are 32 bits wide
Report = Callable[[Sequence[str]], None]  # of reasons why images were replaced


class SeededIndex(int):
    """An index into a data set, with the seed of the image's augmentation."""

    seed: int

    def __new__(cls, index: int, seed: int):
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.seed  # for pickling to a worker process


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of Python, NumPy and PyTorch inside the block, then restore their states."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed the GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the seed of an epoch, counted from 0, in a run with `seed`."""
    return int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]) % SEEDS


def view_seed(seed: int, image: str, view: int) -> int:
    """Return the seed of a fixed augmented view of an image, identified by its name."""
    digest = hashlib.blake2b(f"{seed}\0{view}\0{image}".encode(errors="surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % SEEDS


class EpochLoader:
    """A training loader whose batches depend on seed and epoch only: not on workers, earlier epochs or the first batch.

    Set `epoch` (from 0) and `start`, the first batch, before iterating.

    With views, every image has that many fixed augmented views instead of a new augmentation each time; an epoch shows one
    view of each image, and `views` epochs show all of them. Batches then have `index` and `view` `(B,)`, and pixels only for
    the images that `wanted` selects, at positions `rows`.

    In a job of several ranks a batch is the rank's share of the whole batch of length `size`; `counts` are the lengths of all
    shares, and with views `all_index` and `all_view` describe the whole batch.

    Args:
        loader: a Dassl loader; its data set, order of batches, workers and collation are used.
        seed: of the run.
        views: number of fixed views per image; 0: a new augmentation every time.
        seed_of_views: a view's augmentation is seeded by (`seed_of_views`, image, view).
        images: a name for each image of the data set, used in that seed.
    """

    def __init__(self, loader: DataLoader, seed: int, views: int = 0, seed_of_views: int = 0, images: Sequence[str] = ()):
        self.loader = loader
        self.seed, self.views, self.seed_of_views, self.images = seed, views, seed_of_views, images
        self.epoch = self.start = 0
        self.wanted: Callable[[Tensor, Tensor], Tensor] | None = None  # of index and view (B,) which pixels; None: all
        self.report: Report | None = None  # gets the reasons why images of a batch were replaced

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._load(self.batches()[self.start :])

    @property
    def dataset(self) -> Dataset:
        return self.loader.dataset

    def batches(self) -> list[list[SeededIndex]]:
        """Return the indices of all batches of the epoch, each with the seed of its augmentation."""
        with seeded(epoch_seed(self.seed, self.epoch)):
            torch.empty((), dtype=torch.int64).random_()  # a DataLoader draws this number before its order
            batches = list(self.loader.batch_sampler)
            generator = torch.Generator().manual_seed(int(torch.randint(SEEDS, (1,))))
        return [[self._seeded_index(i, generator) for i in batch] for batch in batches]

    def left_out(self) -> Iterator[dict[str, Any]]:
        """Return the batch of the images that the epoch leaves out, if there are as many as ranks."""
        seen, generator = {int(i) for batch in self.batches() for i in batch}, torch.Generator()
        generator.manual_seed(epoch_seed(self.seed, self.epoch))
        left = [self._seeded_index(i, generator) for i in range(len(self.dataset)) if i not in seen]
        return self._load([left] if len(left) >= distributed.world() else [])

    def all_wanted(self, size: int) -> Iterator[dict[str, Any]]:
        """Return batches of `size` of all images whose pixels are wanted in this epoch's view."""
        index = torch.arange(len(self.dataset))
        index = index[self.wanted(index, self._view(index))]
        return self._load([[self._seeded_index(i, None) for i in chunk.tolist()] for chunk in index.split(size) if len(chunk)])

    def _seeded_index(self, index: int, generator: torch.Generator | None) -> SeededIndex:
        if self.views:
            return SeededIndex(index, view_seed(self.seed_of_views, self.images[index], (self.epoch + index) % self.views))
        return SeededIndex(index, int(torch.randint(SEEDS, (1,), generator=generator)))

    def _view(self, index: Tensor) -> Tensor:
        return (self.epoch + index) % self.views

    def _load(self, batches: list[list[SeededIndex]]) -> Iterator[dict[str, Any]]:
        shares = [batch[distributed.share(len(batch))] for batch in batches]
        facts = [{"size": len(batch), "counts": distributed.share_lengths(len(batch))} for batch in batches]
        if not self.views:
            with loaded(self.dataset, shares, self.loader, self.report) as all_images:
                for images, fact in zip(all_images, facts, strict=True):
                    yield {**images, **fact}
            return
        plan = []
        for batch, own, fact in zip(batches, shares, facts, strict=True):
            index = torch.tensor([int(i) for i in own], dtype=torch.long)
            everyone = torch.tensor([int(i) for i in batch])
            rows = torch.arange(len(own))
            rows = rows if self.wanted is None else rows[self.wanted(index, self._view(index))]
            paths = [self.dataset.data_source[i].impath for i in index.tolist()]
            views = {"view": self._view(index), "all_index": everyone, "all_view": self._view(everyone)}
            plan.append({**fact, **views, "index": index, "rows": rows, "impath": paths})
        wanted = [[own[r] for r in item["rows"].tolist()] for own, item in zip(shares, plan, strict=True)]
        with loaded(self.dataset, [own for own in wanted if own], self.loader, self.report) as all_images:
            for item in plan:
                yield {**(next(all_images) if len(item["rows"]) else {}), **item}


@contextmanager
def loaded(
    dataset: Dataset, batches: list[list[int]], like: DataLoader, report: Report | None = None
) -> Iterator[Iterator[dict[str, Any]]]:
    """Load the given batches as the loader `like` does: with its workers, its collation and its pinned memory.

    `report` gets the entry `unreadable` of each batch: why images were replaced.
    The workers end with the context. The garbage collector would wait five seconds for each and leave it running.
    """
    if not batches:
        yield iter(())
        return
    loader = DataLoader(
        ReadableImages(dataset),
        batch_sampler=batches,
        num_workers=min(like.num_workers, len(batches)),
        collate_fn=like.collate_fn,
        pin_memory=like.pin_memory,
        worker_init_fn=leave_signals_to_the_parent,
        generator=torch.Generator(),  # for the workers' own seeds, on which nothing depends
    )
    with starting_workers():
        iterator = iter(loader)
    try:
        yield iterator if report is None else _reported(iterator, report)
    finally:
        getattr(iterator, "_shutdown_workers", lambda: None)()  # of an iterator with workers


def _reported(batches: Iterator[dict[str, Any]], report: Report) -> Iterator[dict[str, Any]]:
    for batch in batches:
        report(batch.get("unreadable", ()))
        yield batch


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
    """A Dassl data set whose images are read by `read_image`, with an augmentation seeded by the index if that has a seed.

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
        with seeded(index.seed) if isinstance(index, SeededIndex) else nullcontext():
            return self.dataset[int(index)]


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
