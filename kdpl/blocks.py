"""One residual attention block of a CLIP tower, taken apart so that prompted passes can run it piece by piece.

Works on the blocks of OpenAI's CLIP and of open_clip, and on the patched blocks that forks of MaPLe and PromptSRC carry,
since it calls their submodules and never their `forward`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnsupportedTowerError(ValueError):
    """A CLIP tower is built in a way that the prompted passes do not know."""


class _QuickGELU(torch.autograd.Function):
    """x * sigmoid(a x) with a = 1.702, as silu(a x) / a: one saved tensor and a fused backward pass."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        scaled = 1.702 * x
        ctx.save_for_backward(scaled)
        return F.silu(scaled).div_(1.702)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        (scaled,) = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad, scaled)


class Block:
    """A view of one frozen residual attention block: x + attn(ln_1(x)), then x + mlp(ln_2(x)).

    Args:
        block: a `ResidualAttentionBlock` of OpenAI's CLIP or of open_clip.

    Raises:
        UnsupportedTowerError: the block is of another kind.
    """

    def __init__(self, block: nn.Module):
        parts = dict(block.named_children())
        mlp = dict(parts["mlp"].named_children()) if isinstance(parts.get("mlp"), nn.Sequential) else {}
        if not isinstance(parts.get("attn"), nn.MultiheadAttention) or list(mlp) != ["c_fc", "gelu", "c_proj"]:
            raise UnsupportedTowerError(
                f"A {type(block).__name__} with parts {sorted(parts)} is not a block the prompted passes know: expected "
                "ln_1, attn (torch.nn.MultiheadAttention), ln_2 and mlp (c_fc, gelu, c_proj), as in OpenAI's CLIP. "
                "Choose a plain ViT CLIP."
            )
        self.attn: nn.MultiheadAttention = parts["attn"]
        self.ln_1, self.ln_2 = parts["ln_1"], parts["ln_2"]
        self.c_fc, self.activation, self.c_proj = mlp["c_fc"], mlp["gelu"], mlp["c_proj"]
        self.scale_1, self.scale_2 = parts.get("ls_1", nn.Identity()), parts.get("ls_2", nn.Identity())
        self.heads = self.attn.num_heads
        self.quick_gelu = type(self.activation).__name__ == "QuickGELU"

    def qkv(self, x: Tensor) -> Tensor:
        """Return queries, keys and values of all positions, `(..., 3, heads, head_dim)`."""
        qkv = F.linear(self.ln_1(x), self.attn.in_proj_weight, self.attn.in_proj_bias)
        return qkv.unflatten(-1, (3, self.heads, -1))

    def q_kv(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries of the positions `rows` of dimension -2 alone `(..., heads, head_dim)`, and keys and values of all
        positions `(..., 2, heads, head_dim)`."""
        x, width = self.ln_1(x), x.shape[-1]
        w, b = self.attn.in_proj_weight, self.attn.in_proj_bias
        q = F.linear(x.index_select(-2, rows), w[:width], b[:width])
        kv = F.linear(x, w[width:], b[width:])
        return q.unflatten(-1, (self.heads, -1)), kv.unflatten(-1, (2, self.heads, -1))

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Return the block's output for positions `x (..., w)` whose heads attended to `attended (..., heads, head_dim)`."""
        x = x + self.scale_1(self.attn.out_proj(attended.flatten(-2)))
        hidden = self.c_fc(self.ln_2(x))  # (..., 4 w)
        hidden = _QuickGELU.apply(hidden) if self.quick_gelu else self.activation(hidden)
        return x + self.scale_2(self.c_proj(hidden))
