"""Selection of names when the class names are unknown (KDPL-CA, arXiv:2407.03056), and a report of it."""

import csv
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from kdpl.common import distributed
from kdpl.common.files import atomic_write
from kdpl.common.safe_text import to_cell

COLUMNS = ("name", "times_selected", "share_of_batches", "mean_probability")


class SelectionReport:
    """Counts how often each name is selected and how probable it was, on the device and without synchronising.

    Args:
        names: the vocabulary `(V)`.
    """

    def __init__(self, names: Sequence[str]):
        self.names = list(names)
        self.batches = 0
        self._times = torch.zeros(len(self.names), dtype=torch.float64)  # float: sums are deterministic on a GPU too
        self._probability = torch.zeros(len(self.names), dtype=torch.float64)  # sum over the batches that selected it

    @torch.no_grad()
    def add(self, indices: Tensor, probabilities: Tensor) -> None:
        """Count one batch.

        Args:
            indices: of the selected names, distinct, `(K,)`.
            probabilities: their mean probabilities in the batch, `(K,)`.
        """
        if self._times.device != indices.device:
            self._times, self._probability = self._times.to(indices.device), self._probability.to(indices.device)
        self.batches += 1
        self._times[indices] += 1
        self._probability[indices] += probabilities.double()

    def write(self, path: str | os.PathLike) -> None:
        """Write a CSV file of the names that were ever selected, by falling count, then by falling probability.

        Its columns are `COLUMNS`; the mean probability is over the batches that selected the name.

        Raises:
            OSError: the file cannot be written.
        """
        times, sums = self._times.tolist(), self._probability.tolist()
        selected = [(times[i], sums[i] / times[i], name) for i, name in enumerate(self.names) if times[i]]
        selected.sort(key=lambda row: (-row[0], -row[1]))
        with atomic_write(path, "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(COLUMNS)
            for count, probability, name in selected:
                writer.writerow([to_cell(name), int(count), f"{count / self.batches:.4f}", f"{probability:.6g}"])

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, for a checkpoint."""
        return {"batches": self.batches, "times": self._times.clone(), "probability": self._probability.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned, for the same vocabulary."""
        self.batches = state["batches"]
        self._times, self._probability = state["times"].clone(), state["probability"].clone()


@torch.no_grad()
def select_names(teacher_logits: Tensor, k: int, weight: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the k names with the highest teacher probability, averaged over the batch (and teachers), and these probabilities.

    Args:
        teacher_logits: `(B, V)` over a vocabulary, or `(M, B, V)` of M teachers; the softmax over it is computed in fp32.
        k: number of names; more than V means all.
        weight: this rank's fraction of the whole batch, in a job of several ranks.

    Returns:
        Indices `(k,)` by falling probability, and mean probabilities `(k,)`.
    """
    mean = distributed.total(teacher_logits.float().softmax(-1).flatten(0, -2).mean(0) * weight)  # (V,)
    values, indices = mean.topk(min(k, len(mean)))
    return indices, values
