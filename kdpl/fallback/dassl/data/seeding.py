"""Where the randomness of data loading comes from.

Shuffling draws from the global generators of the main process, and so does one seed for every image it puts in a batch.
The image's augmentation draws from generators seeded with that alone. A run's batches therefore depend on the seed of
the run, not on how many workers load them.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch.utils.data import Sampler

from dassl.utils import set_random_seed

_SEEDS = 2**31  # seeds lie below this: NumPy's are 32 bits wide


class SeededIndex(int):
    """An index into a data set that carries the seed of the image's augmentation."""

    seed: int

    def __new__(cls, index: int, seed: int):
        self = super().__new__(cls, index)
        self.seed = seed
        return self

    def __getnewargs__(self) -> tuple[int, int]:
        return int(self), self.seed  # for the way to a worker process


class SeededSampler(Sampler[SeededIndex]):
    """The indices of another sampler, each with a fresh seed."""

    def __init__(self, sampler: Sampler[int]):
        self.sampler = sampler

    def __iter__(self) -> Iterator[SeededIndex]:
        # A generator of its own: workers fetch indices ahead, while the training draws from the global one.
        generator = torch.Generator().manual_seed(int(torch.randint(_SEEDS, (1,))))
        for index in self.sampler:
            yield SeededIndex(index, int(torch.randint(_SEEDS, (1,), generator=generator)))

    def __len__(self) -> int:
        return len(self.sampler)


@contextmanager
def augmentation_seed(index: int) -> Iterator[None]:
    """Draw from generators seeded for this image, then put the global ones back; a plain int changes nothing."""
    if not isinstance(index, SeededIndex):
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(index.seed)
    np.random.seed(index.seed)
    torch.default_generator.manual_seed(index.seed)  # torch.manual_seed would reseed the GPUs too
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


def seed_epoch(seed: int, epoch: int) -> None:
    """Seed the global generators for an epoch, so that a resumed run draws what an unbroken one does.

    Args:
        seed: the run's seed; below 0, nothing is seeded.
        epoch: counted from 0.
    """
    if seed >= 0:
        set_random_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]) % _SEEDS)
