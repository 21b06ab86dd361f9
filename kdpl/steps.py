"""The terms of training steps, read from the device many at a time, so that no step waits for it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from kdpl import distributed


class DivergenceError(FloatingPointError):
    """A loss or a learned parameter became NaN or infinite."""


class Step(NamedTuple):
    """What a step of training gave."""

    batch: int  # its number in the epoch, from 0
    lr: float  # the learning rate it was taken with
    values: dict[str, float]


class Steps:
    """Steps whose terms are still on the device."""

    def __init__(self):
        self._waiting: list[tuple[int, float, Sequence[str], tuple[str, ...], Tensor]] = []

    def add(self, batch: int, lr: float, paths: Sequence[str], terms: dict[str, Tensor], weight: float = 1.0) -> None:
        """Take note of a step.

        Args:
            batch: its number in the epoch.
            lr: the learning rate.
            paths: of the batch's images.
            terms: scalars on the device, by name.
            weight: the share of the batch that they are the mean of, in a job of several ranks.
        """
        values = torch.stack([term.detach().float() for term in terms.values()]) * weight
        self._waiting.append((batch, lr, paths, tuple(terms), values))

    def read(self) -> list[Step]:
        """Return the steps since the last time, in one transfer.

        Raises:
            DivergenceError: a term is NaN or infinite; it names the first such step and the images of its batch.
        """
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return []
        steps = []
        rows = distributed.total(torch.stack([values for *_, values in waiting])).tolist()
        for (batch, lr, paths, names, _), row in zip(waiting, rows, strict=True):
            broken = [f"{name} is {value}" for name, value in zip(names, row, strict=True) if not math.isfinite(value)]
            if broken:
                images = "\n".join(["Images of the batch:", *(f"  {path}" for path in paths)])
                raise DivergenceError(
                    f"The training diverged at batch {batch + 1} of the epoch: {', '.join(broken)}. {images}\n"
                    "Look whether an image or a class name is odd; else lower OPTIM.LR, lengthen the warm-up, or set PREC fp32."
                )
            steps.append(Step(batch, lr, dict(zip(names, row, strict=True))))
        return steps
