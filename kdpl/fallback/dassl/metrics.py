"""Accuracy of a batch."""

from collections.abc import Sequence

import torch


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor], target: torch.Tensor, topk: Sequence[int] = (1,)
) -> list[torch.Tensor]:
    """Return, for each k of `topk`, the percentage (1,) of images whose label (B,) is among the k highest logits.

    `output` are logits (B, C), or a tuple or list whose first element they are.
    """
    logits = output[0] if isinstance(output, tuple | list) else output
    hits = logits.topk(max(topk), dim=1).indices == target.view(-1, 1)  # (B, k)
    return [100 * hits[:, :k].any(dim=1).float().mean().reshape(1) for k in topk]
