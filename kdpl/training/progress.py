"""Progress of a training: the terms of its steps, means over the current epoch, and `history.csv` with a line per epoch.

Terms stay on the device and are read for many steps at once, so that no step waits for the device.
"""

import csv
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from kdpl.common import distributed
from kdpl.common.files import atomic_write

FILE_NAME = "history.csv"


class DivergenceError(FloatingPointError):
    """A loss or a learned parameter became NaN or infinite."""


@dataclass
class Step:
    """A training step."""

    batch: int  # in the epoch, from 0
    lr: float  # learning rate of this step
    paths: Sequence[str]  # of the batch's images
    names: tuple[str, ...]  # of its terms
    values: Tensor  # on the device
    line: str = ""  # to be printed, with {} for the terms until they are read
    means: dict[str, float] = field(default_factory=dict)  # of the terms over the epoch so far, once they are read


class Progress:
    """Steps, means and epochs of a training.

    Attributes:
        rows: one dictionary per finished epoch: `epoch` from 1, and the means of the learning rate and of every term.
    """

    def __init__(self):
        self.rows: list[dict[str, float]] = []
        self._waiting: list[Step] = []  # whose terms are not read
        self._count = 0  # steps of the current epoch that were read
        self._sums: dict[str, float] = {}
        self._times: list[tuple[float, float]] = []  # seconds of data and of whole steps since the epoch or the process began

    def add(self, batch: int, lr: float, paths: Sequence[str], terms: dict[str, Any] | None, share: float = 1.0) -> None:
        """Add a step.

        Args:
            batch: its number in the epoch.
            lr: the learning rate.
            paths: of the batch's images.
            terms: numbers, or scalars on the device, by name; None: none.
            share: this rank's fraction of the whole batch, in a job of several ranks.

        Raises:
            TypeError: `terms` is not a dictionary.
        """
        if not isinstance(terms := {} if terms is None else terms, dict):
            raise TypeError(f"forward_backward returned {type(terms).__name__}, expected a dictionary such as {{'loss': 0.5}}.")
        device = next((term.device for term in terms.values() if isinstance(term, Tensor)), None)
        values = [torch.as_tensor(term, dtype=torch.float32, device=device).detach() for term in terms.values()]
        values = torch.stack(values) if values else torch.empty(0)
        self._waiting.append(Step(batch, lr, paths, tuple(terms), values * share))

    def time(self, data: float, whole: float) -> None:
        """Add the seconds that a step took, and the part of them spent waiting for data."""
        self._times.append((data, whole))

    def print_later(self, where: str, lr: float, steps_left: int) -> None:
        """Let the last step have a line when it is read, in the format that the forks' parsers read.

        Args:
            where: epoch and batch.
            lr: the learning rate of the next step.
            steps_left: until the end of the training.
        """
        (data, whole), count = self._times[-1], len(self._times)
        mean_data, mean = (sum(times) / count for times in zip(*self._times, strict=True))
        eta = timedelta(seconds=int(mean * steps_left))
        line = f"{where} time {whole:.3f} ({mean:.3f}) data {data:.3f} ({mean_data:.3f}) {{}} lr {lr:.4e} eta {eta}"
        self._waiting[-1].line = line

    def read(self) -> list[Step]:
        """Return the steps since the last call, in one transfer.

        Raises:
            DivergenceError: a term is NaN or infinite; the message names the first such step and its images.
        """
        steps, self._waiting = self._waiting, []
        numbers = iter(distributed.total(torch.cat([step.values for step in steps])).tolist() if steps else ())
        for step in steps:
            values = {name: next(numbers) for name in step.names}
            if broken := [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]:
                raise DivergenceError(
                    f"The training diverged at batch {step.batch + 1} of the epoch: {', '.join(broken)}. Images of the batch:\n"
                    + "".join(f"  {path}\n" for path in step.paths)
                    + "Check these images and the class names; else lower OPTIM.LR, lengthen the warm-up, or set PREC fp32."
                )
            self._count += 1
            for name, value in {"lr": step.lr, **values}.items():
                self._sums[name] = self._sums.get(name, 0.0) + value
            step.means = {name: self._sums[name] / self._count for name in values}
            step.line = step.line.format(" ".join(f"{k} {value:.4f} ({step.means[k]:.4f})" for k, value in values.items()))
        return steps

    def end_epoch(self, epoch: int) -> None:
        """Close the epoch, counted from 1."""
        if self._count:
            self.rows.append({"epoch": epoch, **{name: value / self._count for name, value in self._sums.items()}})
        self._count, self._sums, self._times = 0, {}, []

    def write(self, folder: str | os.PathLike) -> None:
        """Write all epochs to `history.csv` in the folder.

        Raises:
            OSError: the file cannot be written; its previous version is untouched.
        """
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_write(os.path.join(folder, FILE_NAME), "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return the means of all steps that were read, for a checkpoint."""
        return {"rows": [dict(row) for row in self.rows], "count": self._count, "sums": dict(self._sums)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self.rows, self._count, self._sums = [dict(row) for row in state["rows"]], state["count"], dict(state["sums"])
