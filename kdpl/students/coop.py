"""CoOp (arXiv:2109.01134): learned context tokens before, around or after the class name."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.clip.names import Architecture
from kdpl.clip.prompt_layout import Layout
from kdpl.config.keys import CLASS_TOKEN_POSITIONS, check_choice
from kdpl.students.base import Student
from kdpl.students.pieces import TextContext


class CoOp(Student):
    """Learns `ctx (n_ctx, w_t)`, or `(C, n_ctx, w_t)` with class-specific context (CSC)."""

    node = "COOP"
    defaults = {"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"}
    image_features_are_frozen = True
    learns_class_specific = "CSC"

    def build(self, names: Sequence[str]) -> None:
        o = self.options
        self.context = TextContext(self.clip, o.CTX_INIT, o.N_CTX, False, o.get("CLASS_TOKEN_POSITION", "end"))
        self.learned.ctx = nn.Parameter(self.context.initial(len(names) if self.class_specific else None))

    @classmethod
    def check(cls, options: Mapping[str, Any], architecture: Architecture, name: str) -> None:
        super().check(options, architecture, name)
        if "CLASS_TOKEN_POSITION" in options:
            key = f"TRAINER.{cls.node}.CLASS_TOKEN_POSITION"
            check_choice(key, options["CLASS_TOKEN_POSITION"], CLASS_TOKEN_POSITIONS)

    def prepare(self, names: Sequence[str]) -> "Layout | Chosen":
        if not self.class_specific or list(names) == self.names:
            return self.context.layout(names, self.class_specific)
        rows = torch.tensor(self.learned_rows(names), device=self.clip.device)
        return Chosen(self.context.layout(names, True), rows)

    def text_features(self, prepared: "Layout | Chosen", image_features: Tensor | None = None) -> Tensor:
        ctx = self.learned.ctx
        if isinstance(prepared, Chosen):
            prepared, ctx = prepared.layout, ctx[prepared.rows]
        return normalized(self.clip.text(prepared, ctx))


class Chosen(NamedTuple):
    """Some of the names that class-specific contexts were learned for, or these in another order."""

    layout: Layout
    rows: Tensor  # (C) of `ctx`
