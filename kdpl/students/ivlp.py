"""IVLP: independent text and visual prompts, which PromptSRC regularises (arXiv:2307.06948)."""

from collections.abc import Sequence

from torch import Tensor

from kdpl.clip.model import normalized
from kdpl.clip.prompt_layout import Layout
from kdpl.students.base import Student
from kdpl.students.pieces import TextContext, VisualPrompts, deep_visual_prompts, put_parameter, random_prompts


class IVLP(VisualPrompts, Student):
    """Learns text prompts `(N_CTX_TEXT, w_t)` and visual prompts `(N_CTX_VISION, w_v)` in each layer below their depths."""

    node = "IVLP"
    defaults = {
        "N_CTX_VISION": 2,
        "N_CTX_TEXT": 2,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9,
    }
    model_name = "VLPromptLearner"

    def build(self, names: Sequence[str]) -> None:
        o, width = self.options, self.clip.text.width
        self.context = TextContext(self.clip, o.CTX_INIT, o.N_CTX_TEXT, True)
        self.visual_prompts = deep_visual_prompts(self.learned, o.N_CTX_VISION, self.clip.vision.width, o.PROMPT_DEPTH_VISION)
        keys = ["prompt_learner.ctx"]
        keys += [f"text_encoder.transformer.resblocks.{l}.VPT_shallow" for l in range(1, o.PROMPT_DEPTH_TEXT)]
        initial = [self.context.initial(), *(random_prompts(self.context.n_ctx, width) for _ in keys[1:])]
        self.text_prompts = [put_parameter(self.learned, *pair) for pair in zip(keys, initial, strict=True)]

    def text_features(self, prepared: Layout, image_features: Tensor | None = None) -> Tensor:
        ctx, *deep = self.text_prompts
        return normalized(self.clip.text(prepared, ctx, deep))
