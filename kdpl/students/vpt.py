"""VPT (arXiv:2203.12119): learned visual tokens; the text is fixed."""

from collections.abc import Sequence

from torch import Tensor, nn
from yacs.config import CfgNode

from kdpl.clips import Clip
from kdpl.feature_cache import CachedEnsemble
from kdpl.students.base import Student, VisualPrompts, put_parameter, random_prompts


def deep_visual_prompts(learned: nn.Module, n: int, width: int, depth: int) -> list[nn.Parameter]:
    """Register visual tokens `(n, width)` for `depth` layers under the published names; return them by layer."""
    names = ["image_encoder.VPT"]
    names += [f"image_encoder.transformer.resblocks.{layer}.VPT_shallow" for layer in range(1, depth)]
    return [put_parameter(learned, name, random_prompts(n, width)) for name in names]


class VPT(VisualPrompts, Student):
    """Learns `(n, w_v)` visual tokens in each of the first `PROMPT_DEPTH_VISION` layers."""

    node = "VPT"

    def __init__(self, clip: Clip, options: CfgNode):
        super().__init__(clip, options)
        self.visual_prompts = deep_visual_prompts(
            self.learned, options.N_CTX_VISION, self.vision.width, options.PROMPT_DEPTH_VISION
        )
        # The text is fixed, so that class-agnostic steps, each with other names, need not encode them again.
        self._text = CachedEnsemble(clip, [f"{options.CTX_INIT.replace('_', ' ')} {{}}.".lstrip()])

    def prepare(self, names: Sequence[str]) -> Tensor:
        return self._text(names)

    def text_features(self, prepared: Tensor, image_features: Tensor | None = None) -> Tensor:
        return prepared

    def image_features(self, images: Tensor) -> Tensor:
        first, *deep = self.visual_prompts
        return self.prompted_image_features(images, first, deep)

    def end_epoch(self, epoch: int, max_epoch: int) -> None:
        self._text.flush()
