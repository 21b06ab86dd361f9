"""The constants of a list of prompts, computed once per class list: embeddings, and where learned vectors go.

`PromptLayout` is for causal towers (packed rows, a shared prefix), `DenseLayout` for towers that read whole prompts.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from kdpl.clip.blocks import GroupedAttention, PaddedAttention
from kdpl.clip.preprocessing import index_on


def slot(index: int) -> int:
    """Return the entry that stands in a prompt for the learned context vector `index`, where others are token ids."""
    return -1 - index


def on_cpu(rows: Tensor) -> bool:
    """Return whether to take a CPU's way, where arithmetic counts and launches do not; tests take the other."""
    return rows.is_cpu


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
    longest: int  # rows of a prompt behind the prefix, at most
    _part: Callable[[Sequence[Sequence[int]]], "Layout"]  # the layout of some prompts

    def __init__(self, tower: Any, prompts: Sequence[Sequence[int]], length: int, class_specific: bool):
        if not prompts:
            raise ValueError("The list of prompts is empty: expected at least one class name.")
        longest = max(map(len, prompts))
        if longest > length:
            raise ValueError(
                f"A prompt of {longest} tokens is longer than the text tower's {length}: "
                "shorten the class name or the context (N_CTX)."
            )
        self.tower, self.prompts, self.class_specific = tower, prompts, class_specific
        self._parts: dict[tuple[int, bool], list[tuple[int, Layout]]] = {}

    def __len__(self) -> int:
        return len(self.prompts)

    def _tensor(self, values: Sequence) -> Tensor:
        return index_on(self.tower.device, values)

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
        shape = (0,) if ctx is None else tuple(ctx.shape[:-1])
        if shape[-1] != self.slot_count or (self.class_specific and ctx is not None and shape[:-1] != (len(self),)):
            each = f" for each of {len(self)} prompts" if self.class_specific else ""
            raise ValueError(f"ctx has {shape} vectors: the prompts have {self.slot_count} context slots{each}.")
        if ctx is None:
            return self.rows.unsqueeze(0)
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

    @property
    def apart(self) -> "Layout":
        """The layout that the prompts have from the layer on in which they begin to differ at their slots."""
        return self

    def parts(self, max_rows: int, apart: bool = False) -> list[tuple[int, "Layout"]]:
        """Return layouts of consecutive prompts, each of at most `max_rows` rows where one prompt has no more than that, with
        the number of their first prompt; they are computed once.

        Args:
            apart: count the rows of `apart`.
        """
        if (max_rows, apart) not in self._parts:
            counted = self.apart if apart else self
            count = max(1, (max_rows - counted.prefix) // counted.longest)
            spans = range(0, len(self), count)
            self._parts = {(max_rows, apart): [(start, self._part(self.prompts[start : start + count])) for start in spans]}
        return self._parts[max_rows, apart]


class PromptLayout(Layout):
    """Prompts for a causal tower: the shared prefix, then every prompt's own suffix, shortest first, up to its end."""

    def __init__(self, tower: Any, prompts: Sequence[Sequence[int]], class_specific: bool = False):
        super().__init__(tower, prompts, tower.context_length, class_specific)
        self.prefix = n = _shared_prefix(prompts, class_specific)
        self.order = sorted(range(len(prompts)), key=lambda c: len(prompts[c]))
        lengths = [len(prompts[c]) - n for c in self.order]
        ends = list(accumulate(lengths, initial=n))
        self.size, self.longest = ends[-1], lengths[-1]
        self.eot = self._tensor([end - 1 for end in ends[1:]])  # (C,) row of each prompt's EOT, in packed order
        self.starts = dict(zip(self.order, ends, strict=False))  # first row of each prompt's suffix
        self.original_order = self._tensor(sorted(range(len(self.order)), key=self.order.__getitem__))
        self.sorted = self.order == list(range(len(self.order)))
        shared = [(prompts[0][p], p, 0) for p in range(n)]
        self._embed_entries(shared + [(prompts[c][p], p, c) for c in self.order for p in range(n, len(prompts[c]))])
        self.attention = (GroupedAttention if on_cpu(self.rows) else PaddedAttention)(n, lengths, tower.device)

    def replace(self, x: Tensor, vectors: Tensor) -> tuple["PromptLayout", Tensor]:
        """Put vectors `(n, w)`, or `(C, n, w)` for each prompt, in place of the first n at the slots in the rows `x (P, N, w)`.

        Returns:
            The rows with their layout. It is another one, `apart`, as soon as prompts differ.
        """
        vectors = vectors.to(x.dtype)
        if vectors.dim() == 2 and self.apart is not self:
            before, _, behind = x.split([self.first_slot, len(vectors), self.size - self.first_slot - len(vectors)], dim=1)
            return self, torch.cat([before, vectors.expand(len(x), -1, -1), behind], dim=1)
        if self.apart is not self:
            x = self._part_ways(x)
        rows = self.apart.deep_rows[:, : vectors.shape[-2]]  # (C, n)
        vectors = vectors.expand(*rows.shape, -1).flatten(0, 1).expand(len(x), -1, -1)  # (P, C * n, w)
        return self.apart, x.index_copy(1, rows.flatten(), vectors)

    @cached_property
    def apart(self) -> "PromptLayout":
        """The same prompts, which share only what stands before the first slot; itself if they do not share more."""
        return self if self.prefix <= self.first_slot else PromptLayout(self.tower, self.prompts, class_specific=True)

    @cached_property
    def deep_rows(self) -> Tensor:
        """Rows `(C, deep_room)` of the slots that deep prompts of each class take, if they are not in the prefix."""
        return self._tensor([[self.starts[c] + i for i in range(self.deep_room)] for c in range(len(self))])

    def _part_ways(self, x: Tensor) -> Tensor:
        """Return rows `(P, N, w)` in the layout `apart`, with a copy for each prompt of what they share from the slots on."""
        before, shared, own = x.split([self.first_slot, self.prefix - self.first_slot, self.size - self.prefix], dim=1)
        copies = shared.unsqueeze(1).expand(-1, len(self), -1, -1).flatten(1, 2)  # (P, C * shared, w)
        return torch.cat([before, copies, own], dim=1).index_select(1, self._apart_rows)

    @cached_property
    def _apart_rows(self) -> Tensor:
        """For each row of `apart` its place among the shared ones before the slots, the copies, and the suffixes."""
        shared, rows = self.prefix - self.first_slot, list(range(self.first_slot))
        for i, c in enumerate(self.order):
            copy, own = self.first_slot + i * shared, self.starts[c] + (len(self) - 1) * shared
            rows += [*range(copy, copy + shared), *range(own, own + len(self.prompts[c]) - self.prefix)]
        return self._tensor(rows)

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

    Entries that many prompts have at the same position are one row, so that a gradient of theirs is summed in a fixed order.
    """

    prefix = 0

    def __init__(self, tower: Any, prompts: Sequence[Sequence[int]], pad: int, length: int, class_specific: bool = False):
        super().__init__(tower, prompts, length, class_specific)
        self.pad, self.length, self.size, self.longest = pad, length, length * len(prompts), length
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

    def _part(self, prompts: Sequence[Sequence[int]]) -> "DenseLayout":
        return DenseLayout(self.tower, prompts, self.pad, self.length, self.class_specific)
