"""One cell of a table: percentages by seed, what is computed from them, and bootstrap intervals over seeds and classes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TypeVar

import numpy as np

from kdpl.common.messages import signed as with_sign

Value = TypeVar("Value", float, np.ndarray)
Replicates = Callable[["Draws", Sequence[int | None]], np.ndarray]  # of some seeds: a value for every replicate (R,)

ANY_SEED = None  # the seed of a result that does not depend on one
REPLICATES = 2000
LEVEL = 0.95


@dataclass
class Draws:
    """How often each seed and each class is drawn in each replicate.

    The seeds of one training set are drawn once, and the classes of one list of names: everything that is compared has the
    same draws, so that differences are paired.
    """

    seed: int = 0
    _drawn: dict[Hashable, np.ndarray] = field(default_factory=dict)

    def counts(self, key: Hashable, n: int) -> np.ndarray:
        """Return the counts `(R, n)` of n things drawn n times with replacement."""
        if (key, n) not in self._drawn:
            words = [ord(letter) for letter in repr((key, n))]  # a key has the same draws in every order of use
            generator = np.random.default_rng([self.seed, *words])
            self._drawn[key, n] = generator.multinomial(n, np.full(n, 1 / n), size=REPLICATES)
        return self._drawn[key, n]


def replicates_of(
    right: Mapping[int | None, Sequence[int]], images: Sequence[int], trained: Hashable, classes: Hashable
) -> Replicates:
    """Return the bootstrap of an accuracy in percent.

    Args:
        right: by seed, of each class the images predicted right; under `ANY_SEED` if there is only one run.
        images: all images of each class.
        trained, classes: what the seeds and the classes belong to (see `Draws`).
    """

    def accuracies(draws: Draws, seeds: Sequence[int | None]) -> np.ndarray:
        drawn_classes = draws.counts(("classes", classes), len(images))  # (R, C)
        if ANY_SEED in right:
            right_images = drawn_classes @ np.array(right[ANY_SEED])
        else:
            of_seed = np.stack([right[seed] for seed in seeds])  # (S, C)
            drawn = draws.counts(("seeds", trained, tuple(seeds)), len(seeds)) / len(seeds)
            right_images = np.einsum("rs,sc,rc->r", drawn, of_seed, drawn_classes, optimize=True)
        return 100 * right_images / np.maximum(drawn_classes @ np.array(images), 1)

    return accuracies


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of replicates."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Cell:
    """Percentages by seed.

    Attributes:
        values: the value of each seed; under `ANY_SEED` one that does not depend on a seed.
        means: the mean over given seeds if it is not that of `values`, such as a harmonic mean of two means.
        replicates: its values in a bootstrap; None if the results lack the counts by class.
    """

    values: Mapping[int | None, float]
    means: Callable[[Sequence[int | None]], float] | None = field(default=None, compare=False)
    replicates: Replicates | None = field(default=None, compare=False)

    @property
    def mean(self) -> float:
        return self.mean_over(list(self.values))

    def mean_over(self, seeds: Sequence[int | None]) -> float:
        """Return the mean over some of its seeds, or the one value that does not depend on them."""
        if not self.depends_on_seed:
            return self.values[ANY_SEED]
        return self.means(seeds) if self.means else fmean(self.values[seed] for seed in seeds)

    @property
    def std(self) -> float | None:
        """Standard deviation as the forks' parser computes it, of the population, not of a sample; None for one seed."""
        return pstdev(self.values.values()) if len(self.values) > 1 else None

    @property
    def depends_on_seed(self) -> bool:
        return ANY_SEED not in self.values

    def interval(self, draws: Draws) -> tuple[float, float] | None:
        """Return the 95 % interval over seeds and classes; None if the results lack the counts by class."""
        return None if self.replicates is None else interval(self.replicates(draws, sorted(self.values, key=str)))

    def missing(self, expected: Sequence[int]) -> list[int]:
        """Return the expected seeds that have no value."""
        return [seed for seed in expected if seed not in self.values] if self.depends_on_seed else []

    def text(self, expected: Sequence[int], signed: bool = False, draws: Draws | None = None) -> str:
        """Return mean and deviation, or with draws the interval, with "(2/3 seeds)" if seeds are missing."""
        text = with_sign(self.mean, 2) if signed else f"{self.mean:.2f}"
        if bounds := draws and self.interval(draws):
            text += f" [{with_sign(bounds[0], 2)}, {with_sign(bounds[1], 2)}]"
        elif self.std is not None:
            text += f" ± {self.std:.2f}"
        if missing := self.missing(expected):
            text += f" ({len(expected) - len(missing)}/{len(expected)} seeds)"
        return text


def combine(cells: Sequence[Cell | None], function: Callable[[list[Value]], Value]) -> Cell | None:
    """Apply a function to cells, seed by seed over the seeds that all have, to their means over these seeds, and to replicates.

    Returns:
        None if a cell is missing or no seed is common to all.
    """
    if not cells or None in cells:
        return None
    seeded = [set(cell.values) for cell in cells if cell.depends_on_seed]
    seeds = sorted(set.intersection(*seeded)) if seeded else [ANY_SEED]
    if not seeds:
        return None
    columns = [[cell.values[seed if cell.depends_on_seed else ANY_SEED] for seed in seeds] for cell in cells]
    values = {seed: function(list(of_seed)) for seed, *of_seed in zip(seeds, *columns, strict=True)}
    parts = [cell.replicates for cell in cells]
    replicates = None if None in parts else lambda draws, seeds: function([part(draws, seeds) for part in parts])
    return Cell(values, lambda some: function([cell.mean_over(some) for cell in cells]), replicates)


def average(cells: Sequence[Cell | None]) -> Cell | None:
    """Return the mean of cells, such as over data sets; None if one is missing."""
    return combine(cells, lambda values: sum(values) / len(values))


def harmonic_mean(base: Cell | None, new: Cell | None) -> Cell | None:
    """Return H of base and new accuracy: of the two means, as published tables have it, and of each seed."""
    return combine([base, new], lambda pair: 2 * pair[0] * pair[1] / (sum(pair) + 1e-30))  # 0, if both are


def difference(cell: Cell | None, other: Cell | None) -> Cell | None:
    """Return the first minus the second."""
    return combine([cell, other], lambda pair: pair[0] - pair[1])
