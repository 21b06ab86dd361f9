"""Where the randomness of data loading comes from.

Shuffling draws from the global generators of the main process, and so does one seed for every image it puts in a batch.
The image's augmentation draws from generators seeded with that alone. A run's batches therefore depend on the seed of
the run, not on how many workers load them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.utils.data import Sampler

from dassl.utils import set_random_seed
from kdpl.training.seeding import SEEDS, SeededIndex, epoch_seed, seeded


class SeededSampler(Sampler[SeededIndex]):
    """The indices of another sampler, each with a fresh seed."""

    def __init__(self, sampler: Sampler[int]):
        self.sampler = sampler

    def __iter__(self) -> Iterator[SeededIndex]:
        order = list(self.sampler)  # first, so that it is the order the sampler gives without this
        # A generator of its own: workers fetch indices ahead, while the training draws from the global one.
        generator = torch.Generator().manual_seed(int(torch.randint(SEEDS, (1,))))
        for index in order:
            yield SeededIndex(index, int(torch.randint(SEEDS, (1,), generator=generator)))

    def __len__(self) -> int:
        return len(self.sampler)


def augmentation_seed(index: int) -> AbstractContextManager[None]:
    """Draw from generators seeded for this image, then put the global ones back; a plain int changes nothing."""
    return seeded(index.seed) if isinstance(index, SeededIndex) else nullcontext()


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed the global generators for an epoch, so that a resumed run draws what an unbroken one does.

    Args:
        seed: the run's seed; below 0, nothing is seeded.
        epoch: counted from 0.
    """
    if seed >= 0:
        set_random_seed(epoch_seed(seed, epoch))
