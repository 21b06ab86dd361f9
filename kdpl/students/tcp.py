"""TCP (arXiv:2311.18231): vectors made of each class's text feature stand among the prompts of a later layer."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.clip.names import Architecture
from kdpl.clip.prompt_layout import Layout
from kdpl.students.kgcoop import KgCoOp
from kdpl.students.pieces import TextContext


class Classes(NamedTuple):
    """The prompts of class names, and the frozen features that their vectors are made of."""

    layout: Layout
    features: Tensor  # (C, d)


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class TCP(KgCoOp):
    """Learns `ctx (n_ctx, w_t)` and `meta_net`: Linear(d, d // 4), QuickGELU, Linear(d // 4, n_ctx * w_t).

    The network makes n_ctx vectors of a class's frozen text feature, which take the place of what has become of the context
    at the input of the last layer of PROMPT_DEPTH_TEXT. Behind the name stand the words of the data set's sentence; the loss
    has KgCoOp's term.
    """

    node = "TCP"
    defaults = {"N_CTX": 4, "CTX_INIT": "", "PREC": "fp16", "PROMPT_DEPTH_TEXT": 9, "W": 8.0}
    uses_template = True

    def build(self, names: Sequence[str]) -> None:
        behind = self.template.partition("{}")[2]
        self.context = TextContext(self.clip, self.options.CTX_INIT, self.options.N_CTX, False, behind=behind)
        self.learned.ctx = nn.Parameter(self.context.initial())
        d, out = self.clip.text.embed_dim, self.context.n_ctx * self.clip.text.width
        layers = OrderedDict(linear1=nn.Linear(d, d // 4), relu=QuickGELU(), linear2=nn.Linear(d // 4, out))
        self.learned.meta_net = nn.Sequential(layers)

    @classmethod
    def check(cls, options: Mapping[str, Any], architecture: Architecture, name: str) -> None:
        super().check(options, architecture, name)
        if options["PROMPT_DEPTH_TEXT"] < 2:
            raise ValueError("TRAINER.TCP.PROMPT_DEPTH_TEXT is 1: vectors of classes need a later layer, expected 2 or more.")

    def prepare(self, names: Sequence[str]) -> Classes:
        return Classes(self.context.layout(names), self.frozen_text_features(names))

    def text_features(self, prepared: Classes, image_features: Tensor | None = None) -> Tensor:
        with torch.autocast(prepared.features.device.type, enabled=False):  # a small network, whose rounding would add up
            vectors = self.learned.meta_net(prepared.features).unflatten(-1, (self.context.n_ctx, -1))  # (C, n_ctx, w_t)
        return normalized(self.clip.text(prepared.layout, self.learned.ctx, {self.options.PROMPT_DEPTH_TEXT - 1: vectors}))
