"""One cell of a table: the values of a method's seeds, and what is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, TypeVar

from kdpl.common.messages import signed as with_sign

if TYPE_CHECKING:
    import numpy as np

    from kdpl.experiments.report.intervals import Draws, Replicates

Value = TypeVar("Value", float, "np.ndarray")

ANY_SEED = None  # the seed of a result that does not depend on one


@dataclass(frozen=True)
class Cell:
    """Percentages by seed.

    Attributes:
        values: the value of each seed; under `ANY_SEED` one that does not depend on a seed.
        of_means: the mean if it is not the mean of `values`, such as a harmonic mean of two means.
        replicates: its values in a bootstrap; None if the results lack the counts by class.
    """

    values: Mapping[int | None, float]
    of_means: float | None = None
    replicates: Replicates | None = field(default=None, compare=False)

    @property
    def mean(self) -> float:
        return fmean(self.values.values()) if self.of_means is None else self.of_means

    @property
    def std(self) -> float:
        """Standard deviation over the seeds as the forks' parser computes it: of the population, not of a sample."""
        return pstdev(self.values.values())

    @property
    def depends_on_seed(self) -> bool:
        return ANY_SEED not in self.values

    def interval(self, draws: Draws) -> tuple[float, float] | None:
        """Return the 95 % interval over seeds and classes; None if the results lack the counts by class."""
        from kdpl.experiments.report.intervals import interval

        return None if self.replicates is None else interval(self.replicates(draws, sorted(self.values, key=str)))

    def missing(self, expected: Sequence[int]) -> list[int]:
        """Return the expected seeds that have no value."""
        return [seed for seed in expected if seed not in self.values] if self.depends_on_seed else []

    def text(self, expected: Sequence[int], signed: bool = False, draws: Draws | None = None) -> str:
        """Return mean and deviation, or with draws the interval, with "(2/3 seeds)" if seeds are missing."""
        text = with_sign(self.mean, 2) if signed else f"{self.mean:.2f}"
        bounds = self.interval(draws) if draws else None
        if bounds:
            text += f" [{with_sign(bounds[0], 2)}, {with_sign(bounds[1], 2)}]"
        elif len(self.values) > 1:
            text += f" ± {self.std:.2f}"
        if missing := self.missing(expected):
            text += f" ({len(expected) - len(missing)}/{len(expected)} seeds)"
        return text


def combine(cells: Sequence[Cell | None], function: Callable[[list[Value]], Value]) -> Cell | None:
    """Apply a function to cells, seed by seed over the seeds that all have, to their means over these seeds, and to replicates.

    Returns:
        None if a cell is missing or no seed is common to all.
    """
    if not cells or any(cell is None for cell in cells):
        return None
    seeded = [set(cell.values) for cell in cells if cell.depends_on_seed]
    seeds = sorted(set.intersection(*seeded)) if seeded else [ANY_SEED]
    if not seeds:
        return None
    columns = [[cell.values[seed if cell.depends_on_seed else ANY_SEED] for seed in seeds] for cell in cells]
    # A cell whose mean is not the mean of its values has the same seeds as the cells it was made of.
    means = [cell.mean if len(cell.values) == len(seeds) else fmean(c) for cell, c in zip(cells, columns, strict=True)]
    values = {seed: function([column[i] for column in columns]) for i, seed in enumerate(seeds)}
    parts = [cell.replicates for cell in cells]

    def replicates(draws: Draws, seeds: Sequence[int | None]) -> np.ndarray:
        return function([part(draws, seeds) for part in parts])

    return Cell(values, of_means=function(means), replicates=None if None in parts else replicates)


def average(cells: Sequence[Cell | None]) -> Cell | None:
    """Return the mean of cells, such as over data sets; None if one is missing."""
    return combine(cells, lambda values: sum(values) / len(values))


def harmonic_mean(base: Cell | None, new: Cell | None) -> Cell | None:
    """Return H of base and new accuracy: of the two means, as published tables have it, and of each seed."""
    return combine([base, new], lambda pair: 2 * pair[0] * pair[1] / (sum(pair) + 1e-30))  # 0, if both are


def difference(cell: Cell | None, other: Cell | None) -> Cell | None:
    """Return the first minus the second."""
    return combine([cell, other], lambda pair: pair[0] - pair[1])
