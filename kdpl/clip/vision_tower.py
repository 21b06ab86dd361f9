"""The prompted vision pass: a ViT image tower with learned tokens at its input and, for deep prompts, at later layers.

The learned tokens stand behind the image's own, `[CLS] patches prompts`, after the positional embedding and before `ln_pre`.
At every later layer below the prompt depth the previous tokens' outputs are dropped and that layer's own take their place
(VPT, arXiv:2203.12119), so those outputs are not computed in the first place. A tower that pools other tokens than the class
token pools the image's own.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.clip.blocks import Beside, Block, UnsupportedTowerError, cast_together, check_beside, with_beside

_TIMM = ("timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva")  # the trunks that `TimmViT` runs
NEEDED = "VPT, MaPLe, PromptSRC and IVLP need one, such as 'ViT-B/32'; CoOp and CoCoOp run on any CLIP."
CACHE = 12 * 2**20  # bytes for a layer's widest matrix, on a CPU


class PromptedVision:
    """A ViT image tower that takes learned tokens. It holds references, no copies."""

    blocks: list
    depth: int  # layers
    width: int  # w, of its tokens

    def __call__(
        self, images: Tensor, prompts: Tensor | None = None, deep: Sequence[Tensor] = (), beside: Beside | None = None
    ) -> Tensor:
        """Return the image features, not normalised.

        Args:
            images: `(B, 3, H, W)`, normalised, of the tower's resolution.
            prompts: learned tokens `(n, w)` at the input.
            deep: `(n, w)` for each of the layers 1, 2, ..., which takes the place of the tokens before it.
            beside: functions by layer, as of `PromptedText`; they see learned tokens too.

        Returns:
            `(B, d)`.
        """
        if len(deep) >= self.depth or (deep and prompts is None):
            raise ValueError(
                f"{len(deep)} deep prompts do not fit a vision tower of {self.depth} layers: expected fewer than it has, "
                "behind prompts at the input."
            )
        if beside:
            check_beside(beside, self.depth, "vision tower")
        return self._features(images, prompts, deep, beside or {})

    def norm(self, layer: int, x: Tensor) -> Tensor:
        """Return rows `(..., w)` behind the first layer norm of a block, which is what its attention sees."""
        return self.blocks[layer].ln_1(x)

    def _features(self, images: Tensor, prompts: Tensor | None, deep: Sequence[Tensor], beside: Beside) -> Tensor:
        raise NotImplementedError


def put_behind(x: Tensor, prompts: Tensor | None) -> Tensor:
    """Put learned tokens `(n, w)` behind those of each image `(B, L, w)`."""
    if prompts is None:
        return x
    return torch.cat([x, prompts.to(x.dtype).expand(x.shape[0], -1, -1)], dim=1)  # len(x) would be a constant in a trace


class VisionTower(PromptedVision):
    """The ViT image side of an unmodified CLIP, OpenAI's or open_clip's.

    Args:
        visual: `model.visual` of a CLIP.

    Raises:
        UnsupportedTowerError: it is a ResNet, or a ViT of another design.
    """

    def __init__(self, visual: nn.Module):
        needed = ("conv1", "class_embedding", "positional_embedding", "ln_pre", "transformer", "ln_post", "proj")
        missing = [name for name in needed if not hasattr(visual, name)]
        if missing or getattr(visual, "pool_type", "tok") == "none":
            raise UnsupportedTowerError(
                f"The image tower {type(visual).__name__} (missing {missing}) is not a ViT that gives one feature: {NEEDED}"
            )
        self.visual = visual
        self._at_class_token = getattr(visual, "attn_pool", None) is None and getattr(visual, "pool_type", "tok") == "tok"
        self.blocks = [Block(b) for b in visual.transformer.resblocks]
        self.depth, self.width = len(self.blocks), len(visual.class_embedding)

    def _features(self, images: Tensor, prompts: Tensor | None, deep: Sequence[Tensor], beside: Beside) -> Tensor:
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # which would make the number of images a constant
        if traced or not images.is_cpu or torch.is_grad_enabled():
            return self._encode(images, prompts, deep, beside)
        # As many at once as fit a CPU's cache: a divisor of their number, so that all are computed the same way.
        count, fit = len(images), max(1, CACHE // (4 * 4 * self.visual.positional_embedding.numel()))
        size = next(n for n in range(min(fit, count), 0, -1) if count % n == 0)
        return torch.cat([self._encode(part, prompts, deep, beside) for part in images.split(size)])

    def _encode(self, images: Tensor, prompts: Tensor | None, deep: Sequence[Tensor], beside: Beside) -> Tensor:
        v = self.visual
        with torch.no_grad():  # nothing learned yet: no graph over the patches
            x = v.conv1(images.to(v.conv1.weight.dtype)).flatten(2).transpose(1, 2)  # (B, grid * grid, w)
            cls = v.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
            x = torch.cat([cls, x], dim=1) + v.positional_embedding.to(x.dtype)  # (B, 1 + grid * grid, w)
        own, rows = x.shape[1], None  # the image's own rows, if x is these and learned tokens behind them
        x = v.ln_pre(put_behind(x, prompts))  # (B, L, w)
        deep = cast_together(deep, x.dtype) if deep else ()
        for l, block in enumerate(self.blocks):
            if l == self.depth - 1 and self._at_class_token:  # no other position of the last layer is needed
                q, kv = block.q_kv(x, torch.zeros(1, dtype=torch.long, device=x.device))
                attended, x = _attend_one(q, *kv.unbind(2)), x[:, :1]
            else:
                q, k, v_ = block.qkv(x).unbind(2)  # (B, L, heads, head_dim)
                if l < len(deep) or l == self.depth - 1:  # the prompts' outputs are replaced, or nobody reads them
                    x, q = x[:, :own] if rows is None else rows, q[:, :own]
                attended = _attention(q, k, v_)
            out = block.finish(x, attended)
            x = with_beside(beside[l], x, out) if l in beside else out
            rows, x = (x, put_behind(x, deep[l])) if l < len(deep) else (None, x)
        x = v.ln_post(x[:, 0]) if self._at_class_token else v._pool(x)[0]  # (B, w)
        return x @ v.proj if v.proj is not None else x


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v))).transpose(1, 2)


def _attend_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one query, q `(B, 1, heads, head_dim)`, whose result for an image does not depend on its place in the batch,
    as that of a batch of small matrix products may in the last bit."""
    weights = ((q * k).sum(-1, keepdim=True) * q.shape[-1] ** -0.5).softmax(1)  # (B, L, heads, 1)
    return (weights.to(v.dtype) * v).sum(1, keepdim=True)


class TimmViT(PromptedVision):
    """The ViT of a `TimmModel` of open_clip: MobileCLIP-B, SigLIP, EVA, PE-Core, ViTamin and their like.

    Blocks, norm and pooling are the model's own modules; rotary positions leave learned tokens unturned.

    Args:
        visual: `model.visual` of a CLIP.

    Raises:
        UnsupportedTowerError: it is a convolutional network, or attends in windows or by relative positions.
    """

    def __init__(self, visual: nn.Module):
        trunk = visual.trunk
        kinds = {f"{kind.__module__}.{kind.__name__}" for kind in type(trunk).__mro__}
        if not kinds.intersection(_TIMM) or getattr(trunk, "rope_mixed", False) or getattr(trunk, "dynamic_img_size", False):
            raise UnsupportedTowerError(
                f"The image tower {type(trunk).__name__} of timm is not a ViT that takes learned tokens: {NEEDED}"
            )
        self.visual, self._trunk = visual, trunk
        self.blocks, self.depth, self.width = list(trunk.blocks), len(trunk.blocks), trunk.embed_dim

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
            out = block(x, **where)
            x = with_beside(beside[l], x, out) if l in beside else out
        x = trunk.forward_head(trunk.norm(x[:, :own]))
        return self.visual.head(x)


def _unturned(rope: Tensor, tokens: int) -> Tensor:
    """Return rotary positions, sines and cosines `(..., N, 2 * head_dim)`, with the identity for so many tokens behind."""
    sin, cos = rope.chunk(2, -1)
    identity = [torch.zeros_like(sin[..., :1, :]), torch.ones_like(cos[..., :1, :])]
    return torch.cat([rope, *[torch.cat(identity, dim=-1)] * tokens], dim=-2)
