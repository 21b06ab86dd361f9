"""One residual attention block of a CLIP tower, taken apart so that prompted passes can run it piece by piece.

Works on the blocks of OpenAI's CLIP and of open_clip, and on the patched blocks that forks of MaPLe and PromptSRC carry,
since it calls their submodules and never their `forward`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnsupportedTowerError(ValueError):
    """A CLIP tower is built in a way that the prompted passes do not know."""


_QUICK_GELU = 1.702  # x * sigmoid(1.702 x), the activation of OpenAI's models


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
        return x + self.scale_2(self._mlp(self.ln_2(x)))

    def _mlp(self, x: Tensor) -> Tensor:
        if not self.quick_gelu:
            return self.c_proj(self.activation(self.c_fc(x)))
        # x * sigmoid(a x) is silu(a x) / a: the first factor goes with the product before it, the second to the smaller
        # matrix behind it, so that the wide one is passed over once.
        rows = x.flatten(0, -2)
        hidden = torch.addmm(_QUICK_GELU * self.c_fc.bias, rows, self.c_fc.weight.t(), alpha=_QUICK_GELU)  # (N, 4 w)
        out = F.linear(F.silu(hidden), self.c_proj.weight) * (1 / _QUICK_GELU)
        return (out + self.c_proj.bias).view_as(x)
