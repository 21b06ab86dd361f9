"""IVLP: independent text and visual prompts, the learner that PromptSRC regularises (arXiv:2307.06948)."""

from collections.abc import Sequence

from torch import Tensor
from yacs.config import CfgNode

from kdpl.clips import Clip
from kdpl.students.base import (
    Student,
    TextContext,
    VisualPrompts,
    normalized_text,
    put_parameter,
    random_prompts,
)
from kdpl.students.vpt import deep_visual_prompts
from kdpl.text import PromptLayout


class IVLP(VisualPrompts, Student):
    """Learns text prompts `(N_CTX_TEXT, w_t)` and visual prompts `(N_CTX_VISION, w_v)` in each layer below their depths."""

    node = "IVLP"
    model_name = "VLPromptLearner"

    def __init__(self, clip: Clip, options: CfgNode):
        super().__init__(clip, options)
        self.context = TextContext(clip, options.CTX_INIT, options.N_CTX_TEXT, True)
        self.visual_prompts = deep_visual_prompts(
            self.learned, options.N_CTX_VISION, self.vision.width, options.PROMPT_DEPTH_VISION
        )
        names = ["prompt_learner.ctx"]
        names += [f"text_encoder.transformer.resblocks.{l}.VPT_shallow" for l in range(1, options.PROMPT_DEPTH_TEXT)]
        n, width = self.context.n_ctx, clip.text.width
        initial = [self.context.initial(), *(random_prompts(n, width) for _ in names[1:])]
        self.text_prompts = [put_parameter(self.learned, *pair) for pair in zip(names, initial, strict=True)]

    def prepare(self, names: Sequence[str]) -> PromptLayout:
        return self.context.layout(names)

    def text_features(self, prepared: PromptLayout, image_features: Tensor | None = None) -> Tensor:
        ctx, *deep = self.text_prompts
        return normalized_text(self.clip.text(prepared, ctx, deep))

    def image_features(self, images: Tensor) -> Tensor:
        first, *deep = self.visual_prompts
        return self.prompted_image_features(images, first, deep)
