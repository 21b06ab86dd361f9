"""Bootstrap intervals over seeds and classes: how far an accuracy would move with other seeds and other classes."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

REPLICATES = 2000
LEVEL = 0.95

Replicates = Callable[["Draws", Sequence[int | None]], np.ndarray]  # of some seeds: a value for every replicate (R,)


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


@dataclass(frozen=True)
class Counts:
    """The images of each class that a method predicted right.

    Attributes:
        right: `(C,)` by seed; under None if there is only one run.
        images: `(C,)`, all images of each class.
        trained, classes: what the seeds and the classes belong to (see `Draws`).
    """

    right: dict[int | None, np.ndarray]
    images: np.ndarray
    trained: Hashable
    classes: Hashable

    def accuracies(self, draws: Draws, seeds: Sequence[int | None]) -> np.ndarray:
        """Return the accuracy in percent over these seeds in every replicate `(R,)`."""
        classes = draws.counts(("classes", self.classes), len(self.images))  # (R, C)
        if None in self.right:
            right = classes @ self.right[None]
        else:
            of_seed = np.stack([self.right[seed] for seed in seeds])  # (S, C)
            drawn = draws.counts(("seeds", self.trained, tuple(seeds)), len(seeds)) / len(seeds)
            right = np.einsum("rs,sc,rc->r", drawn, of_seed, classes, optimize=True)
        return 100 * right / np.maximum(classes @ self.images, 1)


def interval(values: np.ndarray) -> tuple[float, float]:
    """Return the percentile interval of replicates."""
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
