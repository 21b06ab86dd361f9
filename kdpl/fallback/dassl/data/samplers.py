"""The order in which a loader visits the images of a data set."""

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from heapq import heapify, heappop, heappush

from torch.utils.data import RandomSampler, Sampler, SequentialSampler

from dassl.data.datasets import Datum, grouped
from kdpl.config.choices import SAMPLERS, check_choice


class _GroupSampler(Sampler[int]):
    """Batches of equally many images from each of `n_groups` groups, as many batches as the groups can fill.

    A group takes part in more batches the more images it has. Which of its images come together, and the order of the
    batches, are drawn from Python's `random` at every pass.
    """

    in_order = False  # of the groups in a batch: at random

    def __init__(self, groups: dict[int, list[int]], n_groups: int, per_group: int):
        self.groups, self.n_groups, self.per_group = groups, n_groups, per_group
        chunks = [len(indices) // per_group for indices in groups.values()]
        # n batches can be filled when the groups, each at most once a batch, have n * n_groups chunks between them.
        self.n_batches = bisect_left(
            range(1, sum(chunks) // n_groups + 2), True, key=lambda n: sum(min(c, n) for c in chunks) < n * n_groups
        )
        if self.n_batches == 0:
            raise ValueError(
                f"Not one batch with {per_group} images from each of {n_groups} groups can be filled from groups of "
                f"{sorted(map(len, groups.values()))} images. Lower BATCH_SIZE, or use RandomSampler."
            )

    def __iter__(self) -> Iterator[int]:
        left = {group: self._chunks(indices) for group, indices in self.groups.items()}
        # Always from the fullest groups, ties at random: otherwise the last batches may lack a group.
        heap = [(-len(chunks), random.random(), group) for group, chunks in left.items()]
        heapify(heap)
        batches = []
        for _ in range(self.n_batches):
            groups = [heappop(heap)[-1] for _ in range(self.n_groups)]
            batches.append([(group, left[group].pop()) for group in groups])
            for group in groups:
                heappush(heap, (-len(left[group]), random.random(), group))
        random.shuffle(batches)
        for batch in batches:
            for _, indices in sorted(batch) if self.in_order else random.sample(batch, len(batch)):
                yield from indices

    def __len__(self) -> int:
        return self.n_batches * self.n_groups * self.per_group

    def _chunks(self, indices: list[int]) -> list[list[int]]:
        shuffled = random.sample(indices, len(indices))
        k = self.per_group
        return [shuffled[i : i + k] for i in range(0, len(shuffled) - k + 1, k)]


class RandomDomainSampler(_GroupSampler):
    """Batches of `batch_size` images, equally many from each of `n_domain` domains.

    Args:
        data_source: the images.
        batch_size: images in a batch, a multiple of `n_domain`.
        n_domain: domains in a batch; below 1: all.

    Raises:
        ValueError: the images do not allow such batches.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_domain: int = 0):
        domains = grouped(range(len(data_source)), [item.domain for item in data_source])
        n_domain = n_domain if n_domain and n_domain > 0 else len(domains)
        _check_multiple(batch_size, n_domain, "the number of domains in a batch (N_DOMAIN)")
        super().__init__(domains, n_domain, batch_size // n_domain)


class SeqDomainSampler(RandomDomainSampler):
    """Batches of equally many images from every domain, in the order of the domains."""

    in_order = True


class RandomClassSampler(_GroupSampler):
    """Batches of `batch_size` images, `n_ins` from each of `batch_size // n_ins` classes.

    Images of a class with fewer than `n_ins` are taken more than once.

    Args:
        data_source: the images.
        batch_size: images in a batch, a multiple of `n_ins`.
        n_ins: images of a class in a batch.

    Raises:
        ValueError: the images do not allow such batches.
    """

    def __init__(self, data_source: Sequence[Datum], batch_size: int, n_ins: int):
        _check_multiple(batch_size, n_ins, "the images of a class in a batch (N_INS)")
        classes = grouped(range(len(data_source)), [item.label for item in data_source])
        enough = {label: (indices * n_ins)[: max(n_ins, len(indices))] for label, indices in classes.items()}
        super().__init__(enough, batch_size // n_ins, n_ins)


def build_sampler(
    sampler_type: str,
    cfg=None,
    data_source: Sequence[Datum] = (),
    batch_size: int = 32,
    n_domain: int = 0,
    n_ins: int = 16,
) -> Sampler[int]:
    """Return the sampler of that name over `data_source`.

    Raises:
        ValueError: there is no sampler of that name, or the images do not allow its batches.
    """
    check_choice("SAMPLER", sampler_type, SAMPLERS)
    build = {
        "RandomSampler": lambda: RandomSampler(data_source),
        "SequentialSampler": lambda: SequentialSampler(data_source),
        "RandomDomainSampler": lambda: RandomDomainSampler(data_source, batch_size, n_domain),
        "SeqDomainSampler": lambda: SeqDomainSampler(data_source, batch_size),
        "RandomClassSampler": lambda: RandomClassSampler(data_source, batch_size, n_ins),
    }
    return build[sampler_type]()


def _check_multiple(batch_size: int, divisor: int, meaning: str) -> None:
    if divisor < 1 or batch_size % divisor:
        raise ValueError(f"BATCH_SIZE {batch_size} is not a multiple of {divisor}, {meaning}. Change one of the two.")
