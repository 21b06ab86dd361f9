"""The prompted vision pass of timm's ViTs: MobileCLIP-B, SigLIP, EVA, PE-Core, ViTamin and their like.

Learned tokens stand behind the image's own, after the positional embedding; rotary positions leave them unturned. Blocks, norm
and pooling are the model's own modules, and the pooling reads the image's own tokens alone. At every later layer below the
prompt depth the previous tokens' outputs are dropped and that layer's own take their place (VPT, arXiv:2203.12119).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdpl.clip.blocks import Beside, UnsupportedTowerError, add_beside
from kdpl.clip.vision_tower import PromptedVision, put_behind

_KNOWN = ("timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva")


class TimmViT(PromptedVision):
    """The ViT of a `TimmModel` of open_clip.

    Args:
        visual: `model.visual` of a CLIP.

    Raises:
        UnsupportedTowerError: it is a convolutional network, or attends in windows or by relative positions.
    """

    def __init__(self, visual: nn.Module):
        trunk = visual.trunk
        kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(trunk).__mro__}
        if not kinds.intersection(_KNOWN) or getattr(trunk, "rope_mixed", False) or getattr(trunk, "dynamic_img_size", False):
            raise UnsupportedTowerError(
                f"The image tower {type(trunk).__name__} of timm is not a ViT that takes learned tokens: "
                "VPT, MaPLe, PromptSRC and IVLP need one, such as 'ViT-B/32'; CoOp and CoCoOp run on any CLIP."
            )
        self.visual, self._trunk = visual, trunk
        self.blocks = list(trunk.blocks)

    @property
    def width(self) -> int:
        return self._trunk.embed_dim

    def norm(self, layer: int, x: Tensor) -> Tensor:
        norm = self.blocks[layer].norm1
        return norm(x.to(next(norm.parameters()).dtype)).to(x.dtype)

    def _features(self, images: Tensor, prompts: Tensor | None, deep: Sequence[Tensor], beside: Beside) -> Tensor:
        trunk = self._trunk
        with torch.no_grad():  # nothing learned yet: no graph over the patches
            images = images.to(next(trunk.patch_embed.parameters()).dtype)
            x = trunk._pos_embed(trunk.patch_embed(images))
            x, rope = x if isinstance(x, tuple) else (x, None)  # (B, own, w)
        own = x.shape[1]
        tokens = 0 if prompts is None else prompts.shape[0]
        x = trunk.norm_pre(put_behind(x, prompts))
        where = {} if rope is None else {"rope": _unturned(rope, tokens)}
        for l, block in enumerate(self.blocks):
            if 0 < l <= len(deep):
                x = put_behind(x[:, :own], deep[l - 1])
            x = add_beside(beside, l, x, block(x, **where))
        x = trunk.forward_head(trunk.norm(x[:, :own]))
        return self.visual.head(x)


def _unturned(rope: Tensor, tokens: int) -> Tensor:
    """Return rotary positions, sines and cosines `(..., N, 2 * head_dim)`, with the identity for so many tokens behind."""
    sin, cos = rope.chunk(2, -1)
    identity = [torch.zeros_like(sin[..., :1, :]), torch.ones_like(cos[..., :1, :])]
    return torch.cat([rope, *[torch.cat(identity, dim=-1)] * tokens], dim=-2)
