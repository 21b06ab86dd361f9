"""Prompts as the text pass runs them: packed rows, a shared prefix, groups of equal length."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from kdpl.clip.openclip.dense_layout import DenseLayout
    from kdpl.clip.text_tower import TextTower


def slot(index: int) -> int:
    """Return the entry that stands in a prompt for the learned context vector `index`, where others are token ids."""
    return -1 - index


class PromptLayout:
    """The constants of a list of prompts, computed once per class list: packed embeddings, groups of equal length, EOT rows.

    Args:
        tower: the text tower that will read the prompts.
        prompts: one sequence per class, `[SOT, ..., EOT]`, of token ids and of `slot(i)` where learned vectors go.
        class_specific: True where every class has context vectors of its own, `ctx (C, n, w)`.

    Raises:
        ValueError: no prompt at all, or a prompt longer than the tower's context.
    """

    def __init__(self, tower: "TextTower", prompts: Sequence[Sequence[int]], class_specific: bool = False):
        if not prompts:
            raise ValueError("The list of prompts is empty: expected at least one class name.")
        longest = max(map(len, prompts))
        if longest > tower.context_length:
            raise ValueError(
                f"A prompt of {longest} tokens is longer than the text tower's {tower.context_length}: "
                "shorten the class name or the context (N_CTX)."
            )
        self.prompts = prompts
        self._parts: tuple[int, list[tuple[int, PromptLayout]]] | None = None
        self.class_specific = class_specific
        self.prefix = n = _shared_prefix(prompts, class_specific)
        order = sorted(range(len(prompts)), key=lambda c: len(prompts[c]))
        device = tower.device

        def tensor(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=device)

        # One row per entry: the prefix, then every prompt's suffix, shortest first.
        rows = list(prompts[0][:n]) + [e for c in order for e in prompts[c][n:]]
        positions = list(range(n)) + [p for c in order for p in range(n, len(prompts[c]))]
        owners = [0] * n + [c for c in order for _ in prompts[c][n:]]
        self.groups = [(len(list(g)), m) for m, g in groupby(len(prompts[c]) - n for c in order)]
        self.split = [n, *(count * m for count, m in self.groups)]
        # A suffix sees the whole prefix and itself causally: (m, n + m) for each group.
        self.masks = [torch.ones(m, n + m, dtype=torch.bool, device=device).tril(n) for _, m in self.groups]
        ends, end = {}, n
        for c in order:
            end += len(prompts[c]) - n
            ends[c] = end - 1
        self.eot = tensor([ends[c] for c in order])  # (C,) row of each prompt's EOT, in packed order
        self.original_order = tensor(sorted(range(len(order)), key=order.__getitem__))
        self.sorted = order == list(range(len(order)))

        slots = [(r, owners[r], -1 - e) for r, e in enumerate(rows) if e < 0]
        self.slot_rows = tensor([r for r, _, _ in slots])
        self.slot_owners = tensor([c for _, c, _ in slots])
        self.slot_index = tensor([i for _, _, i in slots])
        self.slot_count = 1 + max((i for _, _, i in slots), default=-1)
        # A slot's row starts as its position alone; the learned vector is added when the prompts are embedded.
        tokens = tower.embed(tensor([max(e, 0) for e in rows]))  # (N, w)
        tokens[self.slot_rows] = 0
        self.rows = tokens + tower.positions[tensor(positions)].to(tokens.dtype)  # (N, w)

    def __len__(self) -> int:
        return len(self.eot)

    def parts(self, tower: "TextTower", max_rows: int) -> list[tuple[int, "PromptLayout"]]:
        """Return layouts of consecutive prompts, each of at most `max_rows` tokens where one prompt is no longer than that,
        with the number of their first prompt; they are computed once."""
        if self._parts is None or self._parts[0] != max_rows:
            starts, rows = [0], self.prefix
            for c, prompt in enumerate(self.prompts):
                rows += len(prompt) - self.prefix
                if rows > max_rows and c > starts[-1]:
                    starts.append(c)
                    rows = len(prompt)
            spans = zip(starts, [*starts[1:], len(self)], strict=True)
            self._parts = max_rows, [(a, PromptLayout(tower, self.prompts[a:b], self.class_specific)) for a, b in spans]
        return self._parts[1]

    def embed(self, ctx: Tensor | None) -> Tensor:
        """Return the packed input of the first layer, `(P, N, w)`; P is 1, or B for one context per image."""
        return fill_slots(self, self.rows, ctx)


def fill_slots(layout: "PromptLayout | DenseLayout", rows: Tensor, ctx: Tensor | None) -> Tensor:
    """Return the rows `(N, w)` of a layout with context vectors in its slots, `(P, N, w)`; P is 1, or B for one per image."""
    if ctx is None:
        if layout.slot_count:
            raise ValueError(f"The prompts have {layout.slot_count} context slots: expected ctx, got None.")
        return rows.unsqueeze(0)
    if ctx.shape[-2] != layout.slot_count:
        raise ValueError(f"ctx has {ctx.shape[-2]} vectors {tuple(ctx.shape)}: the prompts have {layout.slot_count} slots.")
    if layout.class_specific:
        vectors = ctx[layout.slot_owners, layout.slot_index].unsqueeze(0)  # (1, S, w)
    else:
        vectors = (ctx if ctx.dim() == 3 else ctx.unsqueeze(0)).index_select(1, layout.slot_index)  # (P, S, w)
    vectors = vectors.to(rows.dtype) + rows[layout.slot_rows]
    return rows.expand(len(vectors), -1, -1).index_copy(1, layout.slot_rows, vectors)


def _shared_prefix(prompts: Sequence[Sequence[int]], class_specific: bool) -> int:
    """Length of the beginning that all prompts have in common; at least EOT stays outside, and slots of a class's own."""
    first, limit = prompts[0], min(map(len, prompts)) - 1
    for i in range(limit):
        if any(p[i] != first[i] for p in prompts) or (class_specific and first[i] < 0):
            return i
    return limit
