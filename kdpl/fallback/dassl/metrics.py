"""Accuracy of a batch."""

from collections.abc import Sequence

import torch


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Return the percentage of images whose label is among the k highest logits, for each k of `topk`.

    Args:
        output: logits (B, C), or a tuple or list whose first element they are.
        target: labels (B,).

    Returns:
        One tensor (1,) for each k.

    Raises:
        ValueError: a k is more than the number of classes.
    """
    logits = output[0] if isinstance(output, tuple | list) else output
    if max(topk) > logits.shape[1]:
        raise ValueError(f"topk {tuple(topk)} asks for more classes than the {logits.shape[1]} that there are.")
    hits = logits.topk(max(topk), dim=1).indices == target.view(-1, 1)  # (B, k)
    return [100 * hits[:, :k].any(dim=1).float().mean().reshape(1) for k in topk]
