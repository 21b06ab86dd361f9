"""Class names that a CLIP cannot tell apart: their text features are the same, whatever their words are.

A packed CLIP knows some words alone, and any text tower cuts or drops something. Comparing tokens does not show that.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from kdpl.common import distributed

SAME = 1 - 1e-5  # the least cosine; those of a word and its plural are below 0.999
ROWS_AT_ONCE = 1024  # bounds the memory for long lists


@torch.no_grad()
def same_features(names: Sequence[str], features: Tensor) -> list[list[str]]:
    """Return the groups of names whose normalised text features `(C, d)` are the same."""
    features = features.float()
    groups: dict[int, list[str]] = {}
    for start in range(0, len(names), ROWS_AT_ONCE):
        same = features[start : start + ROWS_AT_ONCE] @ features.T > SAME  # (n, C)
        for row, first in enumerate(same.byte().argmax(1).tolist(), start):  # of equal values the first
            groups.setdefault(first, []).append(names[row])
    return [group for group in groups.values() if len(group) > 1]


def words_of(groups: Sequence[Sequence[str]], clip: str) -> str:
    """Return a sentence about names that are the same to a CLIP; empty if there are none."""
    if not groups:
        return ""
    lists = [", ".join([*(f"'{name}'" for name in group[:5]), *["..."] * (len(group) > 5)]) for group in groups[:3]]
    more = f"; and {len(groups) - 3} more groups" if len(groups) > 3 else ""
    return (
        f"To '{clip}' these names are the same, so that nothing can tell them apart (it may not know their words): "
        f"{'; '.join(lists)}{more}. Use other words for them, or another CLIP."
    )


def warn_of_same_names(names: Sequence[str], features: Tensor, clip: str) -> None:
    """Print, on the main rank, which class names have the same text features `(C, d)` in a CLIP."""
    if distributed.is_main() and (line := words_of(same_features(names, features), clip)):
        print(f"Warning: {line}")
