"""MaPLe (arXiv:2210.03117): deep text prompts, and visual prompts that are their projections."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.clip.prompt_layout import Layout
from kdpl.students.base import Student
from kdpl.students.pieces import TextContext, VisualPrompts, random_prompts


class MaPLe(VisualPrompts, Student):
    """Learns `ctx (n, w_t)` with `proj` Linear(w_t, w_v), and such a pair for each deeper layer."""

    node = "MAPLE"
    defaults = {"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9}
    model_name = "MultiModalPromptLearner"

    def build(self, names: Sequence[str]) -> None:
        o = self.options
        self.context = TextContext(self.clip, o.CTX_INIT, o.N_CTX, True)
        n, w_t, w_v, deeper = o.N_CTX, self.clip.text.width, self.clip.vision.width, o.PROMPT_DEPTH - 1
        self.learned.prompt_learner = learner = nn.Module()
        learner.ctx = nn.Parameter(self.context.initial())
        learner.proj = nn.Linear(w_t, w_v)
        learner.compound_prompts_text = nn.ParameterList(nn.Parameter(random_prompts(n, w_t)) for _ in range(deeper))
        learner.compound_prompt_projections = nn.ModuleList(nn.Linear(w_t, w_v) for _ in range(deeper))

    def text_features(self, prepared: Layout, image_features: Tensor | None = None) -> Tensor:
        learner = self.learned.prompt_learner
        return normalized(self.clip.text(prepared, learner.ctx, list(learner.compound_prompts_text)))

    @property
    def visual_prompts(self) -> list[Tensor]:
        learner = self.learned.prompt_learner
        projections = [learner.proj, *learner.compound_prompt_projections]
        weights = torch.stack([p.weight for p in projections])  # (depth, w_v, w_t)
        biases = torch.stack([p.bias for p in projections])  # (depth, w_v)
        prompts = torch.stack([learner.ctx, *learner.compound_prompts_text])  # (depth, n, w_t)
        return list(torch.baddbmm(biases[:, None], prompts, weights.mT).unbind())  # (n, w_v) each
