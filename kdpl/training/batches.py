"""The batches of a training set, a function of only the run's seed and the epoch."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdpl.common import distributed
from kdpl.common.command import leave_signals_to_the_parent, starting_workers
from kdpl.training.pixels import ReadableImages
from kdpl.training.seeding import SEEDS, SeededIndex, epoch_seed, seeded, view_seed

Wanted = Callable[[Tensor, Tensor], Tensor]
Report = Callable[[Sequence[str]], None]


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
        self.wanted: Wanted | None = None  # maps index and view (B,) to a mask of needed pixels; None: all
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

    def rest(self) -> Iterator[dict[str, Any]]:
        """Return batches of the wanted images that the epoch leaves out (its last, incomplete batch)."""
        return self.wanted_of(self._left_out(), self.loader.batch_size)

    def last(self) -> Iterator[dict[str, Any]]:
        """Return the batch of the images that the epoch leaves out, if there are as many as ranks."""
        left, generator = self._left_out(), torch.Generator().manual_seed(epoch_seed(self.seed, self.epoch))
        return self._load([[self._seeded_index(i, generator) for i in left]] if len(left) >= distributed.world() else [])

    def _left_out(self) -> list[int]:
        seen = {int(i) for batch in self.batches() for i in batch}
        return [i for i in range(len(self.dataset)) if i not in seen]

    def wanted_of(self, images: Sequence[int], size: int) -> Iterator[dict[str, Any]]:
        """Return batches of `size` of those `images` whose pixels are wanted in this epoch's view."""
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
        facts = [{"size": len(batch), "counts": distributed.share_lengths(len(batch))} for batch in batches]
        if not self.views:
            with self._loaded(shares) as all_images:
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
        with self._loaded([own for own in wanted if own]) as all_images:
            for item in plan:
                yield {**(next(all_images) if len(item["rows"]) else {}), **item}

    def _loaded(self, batches: list[list[SeededIndex]]) -> contextlib.AbstractContextManager[Iterator[dict[str, Any]]]:
        return loaded(
            _SeededImages(self.dataset),
            batches,
            self.loader,
            generator=torch.Generator(),  # for the workers' own seeds, on which nothing depends
            report=self.report,
        )


@contextlib.contextmanager
def loaded(
    dataset: Dataset,
    batches: list[list[int]],
    like: DataLoader,
    generator: torch.Generator | None = None,
    report: Report | None = None,
) -> Iterator[Iterator[dict[str, Any]]]:
    """Load the given batches as the loader `like` does: with its workers, its collation and its pinned memory.

    `report` gets the entry `unreadable` of each batch: why images were replaced.
    The workers end with the context. The garbage collector would wait five seconds for each and leave it running.
    """
    if not batches:
        yield iter(())
        return
    loader = DataLoader(
        dataset,
        batch_sampler=batches,
        num_workers=min(like.num_workers, len(batches)),
        collate_fn=like.collate_fn,
        pin_memory=like.pin_memory,
        worker_init_fn=leave_signals_to_the_parent,
        generator=generator,
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


class _SeededImages(ReadableImages):
    """A data set whose augmentation uses generators seeded by the index."""

    def __getitem__(self, index: SeededIndex) -> dict[str, Any]:
        with seeded(index.seed):
            return super().__getitem__(int(index))
