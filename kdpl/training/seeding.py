"""Random numbers of data loading, a function of only the run's seed: not of earlier steps or the number of workers.

The order of an epoch's batches is drawn from generators seeded for that epoch, and an image's augmentation from generators
seeded for that image, so a resumed run sees the same images as an uninterrupted one.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

SEEDS = 2**31  # seeds lie below this: NumPy's are 32 bits wide


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
