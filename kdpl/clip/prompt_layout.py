"""The constants of a list of prompts, computed once per class list: embeddings, and where learned vectors go.

`PromptLayout` is for causal towers (packed rows, a shared prefix, groups of equal length), `DenseLayout` for towers that read
every position of a prompt.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Protocol

import torch
from torch import Tensor


def slot(index: int) -> int:
    """Return the entry that stands in a prompt for the learned context vector `index`, where others are token ids."""
    return -1 - index


class Embedding(Protocol):
    """What a layout asks of the text tower that will read its prompts."""

    context_length: int
    device: torch.device

    def embed(self, ids: Tensor) -> Tensor: ...

    def place(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return embeddings `(U, w)` with their positions `(U,)` added."""


class Layout:
    """What the layouts share.

    Args:
        tower: the text tower that will read the prompts.
        prompts: one sequence per class, `[*SOT, ..., *EOT]`, of token ids and of `slot(i)` where learned vectors go.
        length: entries of a prompt at most.
        class_specific: True where every class has context vectors of its own, `ctx (C, n, w)`.

    Attributes:
        prefix: number of entries that all prompts share and that are run once.
        size: number of rows that the tower runs.
        first_slot: position of the first learned vector.

    Raises:
        ValueError: no prompt at all, or a prompt longer than `length`.
    """

    prefix: int
    size: int

    def __init__(self, tower: Embedding, prompts: Sequence[Sequence[int]], length: int, class_specific: bool):
        if not prompts:
            raise ValueError("The list of prompts is empty: expected at least one class name.")
        longest = max(map(len, prompts))
        if longest > length:
            raise ValueError(
                f"A prompt of {longest} tokens is longer than the text tower's {length}: "
                "shorten the class name or the context (N_CTX)."
            )
        self.tower, self.prompts, self.class_specific = tower, prompts, class_specific
        self._parts: tuple[int, list[tuple[int, Layout]]] | None = None

    def __len__(self) -> int:
        return len(self.prompts)

    def _tensor(self, values: Sequence) -> Tensor:
        return torch.tensor(values, dtype=torch.long, device=self.tower.device)

    def _embed_entries(self, entries: Sequence[tuple[int, int, int]]) -> None:
        """Embed entries, each with its position and class; a slot's row is its position, to which `embed` adds the vector."""
        slots = [(row, c, -1 - e) for row, (e, _, c) in enumerate(entries) if e < 0]
        self.slot_rows, self.slot_owners, self.slot_index = (self._tensor([s[i] for s in slots]) for i in range(3))
        self.slot_count = 1 + max((i for _, _, i in slots), default=-1)
        self.first_slot = min((p for e, p, _ in entries if e < 0), default=0)
        tokens = self.tower.embed(self._tensor([max(e, 0) for e, _, _ in entries]))  # (U, w)
        tokens[self.slot_rows] = 0
        self.rows = self.tower.place(tokens, self._tensor([p for _, p, _ in entries]))  # (U, w)

    def embed(self, ctx: Tensor | None) -> Tensor:
        """Return the rows of the first layer's input, `(P, U, w)`; P is 1, or B for one context per image."""
        if ctx is None:
            if self.slot_count:
                raise ValueError(f"The prompts have {self.slot_count} context slots: expected ctx, got None.")
            return self.rows.unsqueeze(0)
        if ctx.shape[-2] != self.slot_count:
            raise ValueError(f"ctx has {ctx.shape[-2]} vectors {tuple(ctx.shape)}: the prompts have {self.slot_count} slots.")
        if self.class_specific:
            vectors = ctx[self.slot_owners, self.slot_index].unsqueeze(0)  # (1, S, w)
        else:
            vectors = (ctx if ctx.dim() == 3 else ctx.unsqueeze(0)).index_select(1, self.slot_index)  # (P, S, w)
        vectors = vectors.to(self.rows.dtype) + self.rows[self.slot_rows]
        return self.rows.expand(len(vectors), -1, -1).index_copy(1, self.slot_rows, vectors)

    @cached_property
    def deep_room(self) -> int:
        """How many vectors later layers take: those whose slots stand at the same places in all prompts."""
        room, first = 0, self.first_slot
        while all(len(prompt) > first + room and prompt[first + room] == slot(room) for prompt in self.prompts):
            room += 1
        return room

    def parts(self, max_rows: int) -> list[tuple[int, "Layout"]]:
        """Return layouts of consecutive prompts, each of at most `max_rows` rows where one prompt has no more than that, with
        the number of their first prompt; they are computed once."""
        if self._parts is None or self._parts[0] != max_rows:
            starts, rows = [0], self.prefix
            for c in range(len(self)):
                rows += self._own_rows(c)
                if rows > max_rows and c > starts[-1]:
                    starts.append(c)
                    rows = self.prefix + self._own_rows(c)
            spans = zip(starts, [*starts[1:], len(self)], strict=True)
            self._parts = max_rows, [(a, self._part(self.prompts[a:b])) for a, b in spans]
        return self._parts[1]

    def _own_rows(self, c: int) -> int:
        """Return the number of rows of prompt `c` behind the prefix."""
        raise NotImplementedError

    def _part(self, prompts: Sequence[Sequence[int]]) -> "Layout":
        raise NotImplementedError


class PromptLayout(Layout):
    """Prompts for a causal tower: the shared prefix, then every prompt's own suffix, shortest first, up to its end."""

    def __init__(self, tower: Embedding, prompts: Sequence[Sequence[int]], class_specific: bool = False):
        super().__init__(tower, prompts, tower.context_length, class_specific)
        self.prefix = n = _shared_prefix(prompts, class_specific)
        order = sorted(range(len(prompts)), key=lambda c: len(prompts[c]))
        self.groups = [(len(list(g)), m) for m, g in groupby(len(prompts[c]) - n for c in order)]
        self.split = [n, *(count * m for count, m in self.groups)]
        # A suffix sees the whole prefix and itself causally: (m, n + m) for each group.
        self.masks = [torch.ones(m, n + m, dtype=torch.bool, device=tower.device).tril(n) for _, m in self.groups]
        ends, end = {}, n
        for c in order:
            end += len(prompts[c]) - n
            ends[c] = end - 1
        self.size = end
        self.eot = self._tensor([ends[c] for c in order])  # (C,) row of each prompt's EOT, in packed order
        self.original_order = self._tensor(sorted(range(len(order)), key=order.__getitem__))
        self.sorted = order == list(range(len(order)))
        shared = [(prompts[0][p], p, 0) for p in range(n)]
        self._embed_entries(shared + [(prompts[c][p], p, c) for c in order for p in range(n, len(prompts[c]))])

    @cached_property
    def deep_room(self) -> int:
        return max(0, min(super().deep_room, self.prefix - self.first_slot))

    def _own_rows(self, c: int) -> int:
        return len(self.prompts[c]) - self.prefix

    def _part(self, prompts: Sequence[Sequence[int]]) -> "PromptLayout":
        return PromptLayout(self.tower, prompts, self.class_specific)


def _shared_prefix(prompts: Sequence[Sequence[int]], class_specific: bool) -> int:
    """Length of the beginning that all prompts have in common; at least EOT stays outside, and slots of a class's own."""
    first, limit = prompts[0], min(map(len, prompts)) - 1
    for i in range(limit):
        if any(p[i] != first[i] for p in prompts) or (class_specific and first[i] < 0):
            return i
    return limit


class DenseLayout(Layout):
    """Prompts for a tower that reads every position, filled up with the id `pad` to `length` entries.

    Entries that many prompts have at the same position are one row: what depends on the entry and its position alone is
    computed once for all.
    """

    prefix = 0

    def __init__(self, tower: Embedding, prompts: Sequence[Sequence[int]], pad: int, length: int, class_specific: bool = False):
        super().__init__(tower, prompts, length, class_specific)
        self.pad, self.length, self.size = pad, length, length * len(prompts)
        filled = [[*prompt, *[pad] * (length - len(prompt))] for prompt in prompts]
        # A row for each different entry at a position; learned vectors of a class's own are different for each class.
        found: dict[tuple[int, int, int], int] = {}
        index = [
            [found.setdefault((e, p, c if class_specific and e < 0 else -1), len(found)) for p, e in enumerate(entries)]
            for c, entries in enumerate(filled)
        ]
        self.index = self._tensor(index)  # (C, L) row of each entry
        self.ids = self._tensor([[max(e, 0) for e in entries] for entries in filled])  # (C, L), 0 in slots
        self.is_slot = self._tensor([[e < 0 for e in entries] for entries in filled]).bool()  # (C, L)
        self._embed_entries(list(found))

    def _own_rows(self, c: int) -> int:
        return self.length

    def _part(self, prompts: Sequence[Sequence[int]]) -> "DenseLayout":
        return DenseLayout(self.tower, prompts, self.pad, self.length, self.class_specific)
