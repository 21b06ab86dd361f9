"""Groups of similar photos in the teacher's space, each with a name from a vocabulary, for a pile that has no names yet."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

MOST = 60  # groups: more are too many to look through
SMALLEST = 2  # photos of a group
STEPS = 20
EXAMPLES = 20_000  # photos by which the centres are found


@torch.no_grad()
def group(features: Tensor, count: int | None = None) -> Tensor:
    """Return the group of each photo, `(N,)`: k-means by cosine, from centres that lie far from each other.

    Nothing is random: the same photos have the same groups.

    Args:
        features: unit features `(N, d)`.
        count: of groups; by default the square root of the number of photos, at most `MOST`.
    """
    some = features[:: max(1, len(features) // EXAMPLES)]
    count = min(len(some), count or min(MOST, max(2, round(len(some) ** 0.5))))
    chosen = [int((some @ some.mean(0)).argmax())]
    nearest = some @ some[chosen[0]]  # (n), similarity to the nearest centre
    for _ in range(count - 1):
        chosen.append(int(nearest.argmin()))
        nearest = torch.maximum(nearest, some @ some[chosen[-1]])
    centres = some[chosen]  # (K, d)
    for _ in range(STEPS):
        nearest = (some @ centres.T).argmax(1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, some)
        moved = F.normalize(torch.where(sums.abs().sum(1, keepdim=True) > 0, sums, centres), dim=-1)
        if torch.equal(moved, centres):
            break
        centres = moved
    return torch.cat([(part @ centres.T).argmax(1) for part in features.split(EXAMPLES)])


@torch.no_grad()
def suggest(features: Tensor, groups: Tensor, names: Sequence[str], texts: Tensor) -> list[tuple[str, list[int]]]:
    """Return the groups with a name each, largest first: `(name, photos)`, the most typical photos first.

    A group's name is the likeliest one of its mean; two groups with the same name become one.

    Args:
        features: unit features of the photos `(N, d)`.
        groups: of `group`, `(N,)`.
        names, texts: a vocabulary `(V)` and its unit features `(V, d)`.
    """
    named: dict[str, list[tuple[float, int]]] = {}
    for number in groups.unique().tolist():
        members = (groups == number).nonzero().flatten()
        if len(members) < SMALLEST:
            continue
        centre = F.normalize(features[members].mean(0), dim=0)
        name = names[int((texts @ centre).argmax())]
        typical = (features[members] @ centre).tolist()
        named.setdefault(name, []).extend(zip(typical, members.tolist(), strict=True))
    found = [(name, [photo for _, photo in sorted(rows, reverse=True)]) for name, rows in named.items()]
    return sorted(found, key=lambda row: -len(row[1]))
