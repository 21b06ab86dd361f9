"""VPT (arXiv:2203.12119): learned visual tokens; the text is fixed."""

from collections.abc import Sequence

from torch import Tensor

from kdpl.students.base import Student
from kdpl.students.pieces import VisualPrompts, deep_visual_prompts


class VPT(VisualPrompts, Student):
    """Learns `(n, w_v)` visual tokens in each of the first `PROMPT_DEPTH_VISION` layers."""

    node = "VPT"
    defaults = {"N_CTX_VISION": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH_VISION": 1}

    def build(self, names: Sequence[str]) -> None:
        o = self.options
        self.visual_prompts = deep_visual_prompts(self.learned, o.N_CTX_VISION, self.clip.vision.width, o.PROMPT_DEPTH_VISION)
        self.sentence = f"{o.CTX_INIT.replace('_', ' ')} {{}}.".lstrip()

    def prepare(self, names: Sequence[str]) -> Tensor:
        return self.frozen_text_features(names, [self.sentence])

    def text_features(self, prepared: Tensor, image_features: Tensor | None = None) -> Tensor:
        return prepared
