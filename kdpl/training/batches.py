"""The batches of a training set, epoch by epoch, as a function of the run's seed and the epoch alone."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdpl.common import distributed
from kdpl.common.signals import leave_signals_to_the_parent
from kdpl.training.pixels import ReadableImages
from kdpl.training.seeding import SEEDS, SeededIndex, epoch_seed, seeded, view_seed

Wanted = Callable[[Tensor, Tensor], Tensor]


class EpochLoader:
    """A training loader whose batches depend on seed and epoch, not on workers, on what ran before, or on where it starts.

    The attribute `epoch` says which epoch, from 0, the next iteration gives, and `start` at which batch it begins.

    With views, every image has that many fixed augmented views instead of a fresh augmentation each time; an epoch shows one
    of each image, and as many epochs show them all. Batches then have `index` and `view` `(B,)`, and pixels for those
    images alone that `wanted` asks for: `rows` says which they are.

    In a job of several ranks a batch is the rank's share of the whole, whose length is `size`; `counts` are the lengths of all
    shares, and with views `all_index` and `all_view` are those of the whole batch.

    Args:
        loader: a loader of Dassl's; its data set, order of batches, workers and collation are used.
        seed: of the run.
        views: how many fixed views an image has; 0: a fresh augmentation every time.
        seed_of_views: views are drawn by a seed of (`seed_of_views`, image, view).
        images: a name for each image of the data set, which stands for it in that seed.
    """

    def __init__(self, loader: DataLoader, seed: int, views: int = 0, seed_of_views: int = 0, images: Sequence[str] = ()):
        self.loader = loader
        self.seed, self.views, self.seed_of_views, self.images = seed, views, seed_of_views, images
        self.epoch = self.start = 0
        self.wanted: Wanted | None = None  # from index and view (B,) to which images' pixels are needed; None: all

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
            torch.empty((), dtype=torch.int64).random_()  # what a loader draws before its order
            batches = list(self.loader.batch_sampler)
            generator = torch.Generator().manual_seed(int(torch.randint(SEEDS, (1,))))
        return [[self._seeded_index(i, generator) for i in batch] for batch in batches]

    def rest(self) -> Iterator[dict[str, Any]]:
        """Give, in batches, the images that the epoch leaves out and whose pixels are wanted nevertheless."""
        seen = {int(i) for batch in self.batches() for i in batch}
        return self.wanted_of([i for i in range(len(self.dataset)) if i not in seen], self.loader.batch_size)

    def wanted_of(self, images: Sequence[int], size: int) -> Iterator[dict[str, Any]]:
        """Give, in batches of `size`, those of some images whose pixels are wanted in this epoch's view."""
        index = torch.tensor(images, dtype=torch.long)
        index = index[self.wanted(index, self._view(index))] if self.wanted and len(index) else index[:0]
        return self._load([[self._seeded_index(i, None) for i in chunk.tolist()] for chunk in index.split(size) if len(chunk)])

    def _seeded_index(self, index: int, generator: torch.Generator | None) -> SeededIndex:
        if self.views:
            return SeededIndex(index, view_seed(self.seed_of_views, self.images[index], (self.epoch + index) % self.views))
        return SeededIndex(index, int(torch.randint(SEEDS, (1,), generator=generator)))

    def _view(self, index: Tensor) -> Tensor:
        return (self.epoch + index) % self.views

    def _load(self, batches: list[list[SeededIndex]]) -> Iterator[dict[str, Any]]:
        shares = [batch[distributed.share(len(batch))] for batch in batches]
        facts = [{"size": len(batch), "counts": _share_lengths(len(batch))} for batch in batches]
        if not self.views:
            for loaded, fact in zip(self._loader(shares), facts, strict=True):
                yield {**loaded, **fact}
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
        loaded = iter(self._loader([own for own in wanted if own]))
        for item in plan:
            yield {**(next(loaded) if len(item["rows"]) else {}), **item}

    def _loader(self, batches: list[list[SeededIndex]]) -> DataLoader | list:
        if not batches:
            return []
        return DataLoader(
            _SeededImages(self.dataset),
            batch_sampler=batches,
            num_workers=min(self.loader.num_workers, len(batches)),
            collate_fn=self.loader.collate_fn,
            pin_memory=self.loader.pin_memory,
            worker_init_fn=leave_signals_to_the_parent,
            generator=torch.Generator(),  # of the workers' own seeds, which nothing depends on
        )


def _share_lengths(count: int) -> list[int]:
    shares = [distributed.share(count, rank) for rank in range(distributed.world())]
    return [share.stop - share.start for share in shares]


class _SeededImages(ReadableImages):
    """A data set whose augmentation draws from generators seeded by the index."""

    def __getitem__(self, index: SeededIndex) -> dict[str, Any]:
        with seeded(index.seed):
            return super().__getitem__(int(index))
