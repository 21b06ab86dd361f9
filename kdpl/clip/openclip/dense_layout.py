"""Prompts for text towers that read every position: one row of entries for each prompt, filled up to one length."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from kdpl.clip.prompt_layout import fill_slots


class DenseTower(Protocol):
    """What the layout asks of a tower."""

    context_length: int
    device: torch.device

    def embed(self, ids: Tensor) -> Tensor: ...

    def place(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return embeddings `(U, w)` with their positions `(U,)` added."""


class DenseLayout:
    """The constants of a list of prompts.

    Entries that many prompts have at the same position are one row: what depends on the entry and its position alone is
    computed once for all.

    Args:
        tower: the text tower that will read the prompts.
        prompts: one sequence per class, `[*SOT, ..., *EOT]`, of token ids and of `slot(i)` where learned vectors go.
        pad: the id behind the end of a prompt.
        length: L, entries of every prompt after filling up.
        class_specific: True where every class has context vectors of its own, `ctx (C, n, w)`.

    Raises:
        ValueError: no prompt at all, or a prompt longer than the tower's context.
    """

    def __init__(
        self, tower: DenseTower, prompts: Sequence[Sequence[int]], pad: int, length: int, class_specific: bool = False
    ):
        if not prompts:
            raise ValueError("The list of prompts is empty: expected at least one class name.")
        longest = max(map(len, prompts))
        if longest > length:
            raise ValueError(
                f"A prompt of {longest} tokens is longer than the text tower's {length}: "
                "shorten the class name or the context (N_CTX)."
            )
        self.prompts, self.pad, self.length, self.class_specific = prompts, pad, length, class_specific
        self._parts: tuple[int, list[tuple[int, DenseLayout]]] | None = None
        filled = [[*prompt, *[pad] * (length - len(prompt))] for prompt in prompts]
        # A row for each different entry at a position; learned vectors of a class's own are different for each class.
        found: dict[tuple[int, int, int], int] = {}
        index = [
            [found.setdefault((e, p, c if class_specific and e < 0 else -1), len(found)) for p, e in enumerate(entries)]
            for c, entries in enumerate(filled)
        ]

        def tensor(values: Sequence) -> Tensor:
            return torch.tensor(values, dtype=torch.long, device=tower.device)

        self.index = tensor(index)  # (C, L) row of each entry
        self.ids = tensor([[max(e, 0) for e in entries] for entries in filled])  # (C, L), 0 in slots
        self.is_slot = tensor([[e < 0 for e in entries] for entries in filled]).bool()  # (C, L)
        self.ends = tensor([len(prompt) - 1 for prompt in prompts])  # (C,) position of each prompt's last entry
        slots = [(row, -1 - e, c) for (e, _, c), row in found.items() if e < 0]
        self.slot_rows, self.slot_index, self.slot_owners = (tensor([s[i] for s in slots]) for i in range(3))
        self.slot_count = 1 + max((i for _, i, _ in slots), default=-1)
        self.first_slot = min((p for e, p, _ in found if e < 0), default=0)
        tokens = tower.embed(tensor([max(e, 0) for e, _, _ in found]))  # (U, w)
        tokens[self.slot_rows] = 0
        self.unique = tower.place(tokens, tensor([p for _, p, _ in found]))  # (U, w)

    def __len__(self) -> int:
        return len(self.ends)

    @property
    def rows(self) -> Tensor:
        """What the tower runs, `(C * L,)`: the row of each entry."""
        return self.index.flatten()

    def parts(self, tower: DenseTower, max_rows: int) -> list[tuple[int, "DenseLayout"]]:
        """Return layouts of consecutive prompts, each of at most `max_rows` entries where one prompt has no more than that,
        with the number of their first prompt; they are computed once."""
        if self._parts is None or self._parts[0] != max_rows:
            at_once = max(1, max_rows // self.length)
            spans = [(a, self.prompts[a : a + at_once]) for a in range(0, len(self), at_once)]
            self._parts = (
                max_rows,
                [(a, DenseLayout(tower, some, self.pad, self.length, self.class_specific)) for a, some in spans],
            )
        return self._parts[1]

    def embed(self, ctx: Tensor | None) -> Tensor:
        """Return the different rows of the first layer's input, `(P, U, w)`; P is 1, or B for one context per image."""
        return fill_slots(self, self.unique, ctx)
