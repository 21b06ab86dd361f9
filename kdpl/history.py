"""The course of a training, an epoch a line: `history.csv` in the output folder."""

import csv
import os
from typing import Any

from kdpl.files import atomic_write
from kdpl.steps import Step

FILE_NAME = "history.csv"


class History:
    """The learning rate and the mean of every term, epoch by epoch."""

    def __init__(self):
        self.rows: list[dict[str, float]] = []
        self._count = 0
        self._sums: dict[str, float] = {}

    def add(self, step: Step) -> None:
        """Take note of a step of the running epoch."""
        self._count += 1
        for name, value in {"lr": step.lr, **step.values}.items():
            self._sums[name] = self._sums.get(name, 0.0) + value

    def end_epoch(self, epoch: int) -> None:
        """Close the epoch, counted from 1."""
        if self._count:
            self.rows.append({"epoch": epoch, **{name: value / self._count for name, value in self._sums.items()}})
        self._count, self._sums = 0, {}

    def write(self, folder: str | os.PathLike) -> None:
        """Write all epochs to `history.csv` in the folder.

        Raises:
            OSError: it cannot be written; what was there before is untouched.
        """
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        with atomic_write(os.path.join(folder, FILE_NAME), "w", newline="") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(self.rows)

    def state(self) -> dict[str, Any]:
        """Return everything, for a checkpoint."""
        return {"rows": [dict(row) for row in self.rows], "count": self._count, "sums": dict(self._sums)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take back what `state` returned."""
        self.rows, self._count, self._sums = [dict(row) for row in state["rows"]], state["count"], dict(state["sums"])
