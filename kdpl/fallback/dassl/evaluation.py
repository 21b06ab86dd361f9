"""Test results: accuracy and macro-averaged F1."""

from collections import OrderedDict

import torch
from yacs.config import CfgNode

from dassl.utils import Registry, build_registered

EVALUATOR_REGISTRY = Registry("EVALUATOR")


def build_evaluator(cfg: CfgNode, **kwargs) -> "Classification":
    """Return the evaluator that TEST.EVALUATOR names; `kwargs` (`lab2cname`) are passed on to it."""
    return build_registered(EVALUATOR_REGISTRY, "TEST.EVALUATOR", cfg, **kwargs)


@EVALUATOR_REGISTRY.register()
class Classification:
    """The evaluator of classification: `reset`, `process` for every batch, `evaluate` at the end."""

    def __init__(self, cfg: CfgNode, lab2cname: dict[int, str] | None = None):
        self.reset()

    def reset(self) -> None:
        """Forget all batches."""
        self._predictions: list[torch.Tensor] = []
        self._labels: list[torch.Tensor] = []
        self._num_classes = 0

    def process(self, logits: torch.Tensor, labels: torch.Tensor) -> None:
        """Take in a batch: logits (B, C) and labels (B,). They are read at the end, so that no batch waits for the device."""
        self._labels.append(labels)
        self._predictions.append(logits.argmax(dim=1))
        self._num_classes = max(self._num_classes, logits.shape[1])

    def evaluate(self) -> OrderedDict[str, float]:
        """Print and return the results over all batches since `reset`, in percent.

        Returns:
            accuracy, error_rate and macro_f1 (the mean of F1 over the classes that have images), in this order.

        Raises:
            ValueError: there was no batch.
        """
        if not self._labels:
            raise ValueError("There is nothing to evaluate: no batch was processed since the last reset().")
        labels, predictions = torch.cat(self._labels).long().cpu(), torch.cat(self._predictions).cpu()
        c = max(self._num_classes, int(labels.max()) + 1)
        pairs = labels * c + predictions
        counts = torch.bincount(pairs, minlength=c * c).view(c, c)  # rows are labels, columns predictions
        total, correct = int(counts.sum()), int(counts.diagonal().sum())
        accuracy = 100 * correct / total
        results = OrderedDict(accuracy=accuracy, error_rate=100 - accuracy, macro_f1=_macro_f1(counts))
        print(
            "=> result",
            f"* total: {total:,}",
            f"* correct: {correct:,}",
            f"* accuracy: {accuracy:.1f}%",
            f"* error: {results['error_rate']:.1f}%",
            f"* macro_f1: {results['macro_f1']:.1f}%",
            sep="\n",
        )
        return results


def _macro_f1(counts: torch.Tensor) -> float:
    counts = counts.double()
    images, predicted = counts.sum(dim=1), counts.sum(dim=0)
    present = images > 0
    # 2 TP / (2 TP + FP + FN), whose denominator is the images of a class plus the predictions of it
    f1 = 2 * counts.diagonal()[present] / (images + predicted)[present]
    return float(100 * f1.mean())
