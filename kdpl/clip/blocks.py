"""One residual attention block of a CLIP tower, taken apart so that prompted passes can run it piece by piece, and the causal
attention of prompts that lie packed in one matrix: the prefix that all share, then each prompt's own suffix.

On a CPU arithmetic counts, on a card the number of launches: docs/text_pass.md says what follows from that.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, groupby
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.clip.preprocessing import index_on


class UnsupportedTowerError(ValueError):
    """A CLIP tower is built in a way that the prompted passes do not know."""


_QUICK_GELU = 1.702  # x * sigmoid(1.702 x), the activation of OpenAI's models


class Block:
    """A view of one frozen residual attention block: x + attn(ln_1(x)), then x + mlp(ln_2(x)).

    It calls the block's submodules and never its `forward`, which forks of MaPLe and PromptSRC replace.

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
        if not x.is_cpu:  # one launch for three
            return torch.addmm(self.c_proj.bias, F.silu(hidden), self.c_proj.weight.t(), alpha=1 / _QUICK_GELU).view_as(x)
        out = F.linear(F.silu(hidden), self.c_proj.weight) * (1 / _QUICK_GELU)
        return (out + self.c_proj.bias).view_as(x)


# Of a block's input and output `(..., w)`, in fp32 unless there is autocast, to what is added to the output. It works on every
# row by itself: rows that nobody reads are left out, and rows that prompts share are computed once.
Beside = Mapping[int, Callable[[Tensor, Tensor], Tensor]]


def with_beside(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, out: Tensor) -> Tensor:
    """Return the output of a layer with what its function adds."""
    given = (x, out) if torch.is_autocast_enabled(x.device.type) else (x.float(), out.float())
    return out + function(*given).to(out.dtype)


def check_beside(beside: Beside, depth: int, tower: str) -> None:
    """Raise a ValueError if there is a function of a layer that a tower does not have."""
    if wrong := set(beside).difference(range(depth)):
        raise ValueError(f"'beside' has functions for layers {wrong}, which a {tower} of {depth} layers does not have.")


def cast_together(vectors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return vectors in a precision, those of one shape by one conversion instead of one for each layer."""
    if len({v.shape for v in vectors}) != 1 or all(v.dtype == dtype for v in vectors):
        return [v.to(dtype) for v in vectors]
    return list(torch.stack(tuple(vectors)).to(dtype).unbind())


class GroupedAttention:
    """Attention of packed rows: one call for the prefix, and one for each length of suffixes.

    Args:
        prefix: rows that all prompts share, the first ones.
        lengths: of the suffixes of the C prompts, ascending.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], device: torch.device):
        self.groups = [(len(list(same)), length) for length, same in groupby(lengths)]
        self.split = [prefix, *(count * m for count, m in self.groups)]
        # A suffix sees the whole prefix and itself causally: (m, n + m) for each group.
        self.masks = [torch.ones(m, prefix + m, dtype=torch.bool, device=device).tril(prefix) for _, m in self.groups]

    def attend(self, qkv: Tensor) -> Tensor:
        """Return what all rows attend to: `(P, N, 3, heads, head_dim)` to `(P, N, heads, head_dim)`."""
        prefix, *groups = qkv.split(self.split, dim=1)  # one split, so that the backward pass is one concatenation
        q, k, v = prefix.transpose(1, 3).unbind(2)  # (P, heads, n, head_dim)
        attended = [F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)]
        for group, (count, _), mask in zip(groups, self.groups, self.masks, strict=True):
            q, k, v = group.unbind(2)
            attended.append(_attend(q, _behind(prefix[:, :, 1], k, count), _behind(prefix[:, :, 2], v, count), count, mask))
        return torch.cat(attended, dim=1)

    def attend_last(self, block: Block, x: Tensor, last: Tensor) -> Tensor:
        """Return what each prompt's last row attends to, `(P, C, heads, head_dim)`, in a layer with input `x (P, N, w)`."""
        q, kv = block.q_kv(x, last)  # (P, C, heads, head_dim), (P, N, 2, heads, head_dim)
        prefix, *groups = kv.split(self.split, dim=1)
        attended = []
        for own_q, group, (count, _) in zip(q.split([c for c, _ in self.groups], dim=1), groups, self.groups, strict=True):
            k, v = (_behind(prefix[:, :, i], group[:, :, i], count) for i in (0, 1))
            attended.append(_attend(own_q, k, v, count, None))
        return torch.cat(attended, dim=1)


def _behind(prefix: Tensor, own: Tensor, count: int) -> Tensor:
    """Put the shared prefix before each of `count` suffixes: `(P * count, heads, n + m, head_dim)`."""
    shared = prefix[:, None].expand(-1, count, -1, -1, -1)
    return torch.cat([shared, own.unflatten(1, (count, -1))], dim=2).flatten(0, 1).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, count: int, mask: Tensor | None) -> Tensor:
    """Attention of `count` suffixes of one length, their queries `(P, count * m, heads, head_dim)` packed."""
    own = q.unflatten(1, (count, -1)).flatten(0, 1).transpose(1, 2)  # (P * count, heads, m, head_dim)
    return F.scaled_dot_product_attention(own, k, v, attn_mask=mask).transpose(1, 2).reshape(q.shape)


class PaddedAttention:
    """The same as `GroupedAttention` by one call over whole prompts, the prefix before each suffix, padded to the longest.

    Padding is a copy of the prompt's last row. It stands behind what is read, so that under the causal mask nothing depends
    on it and its gradient is zero.
    """

    def __init__(self, prefix: int, lengths: Sequence[int], device: torch.device):
        self.prefix, self.count, size = prefix, len(lengths), lengths[-1]
        starts = accumulate(lengths, initial=prefix)  # of the suffixes among the packed rows
        firsts = range(prefix, self.count * (prefix + size), prefix + size)  # and among those of whole, padded prompts
        whole = [
            row
            for start, length in zip(starts, lengths, strict=False)
            for row in (*range(prefix), *(start + min(i, length - 1) for i in range(size)))
        ]
        own = [first + i for first, length in zip(firsts, lengths, strict=True) for i in range(length)]
        ends = [first + length - 1 for first, length in zip(firsts, lengths, strict=True)]
        # Packed row of each row of whole prompts; and, the other way, of each packed row, of those without the prefix, and of
        # each prompt's last.
        rows = whole, [*range(prefix), *own], own, ends
        self.whole, self.back, self.own, self.ends = (index_on(device, index) for index in rows)

    def attend(self, qkv: Tensor) -> Tensor:
        return self._attend(qkv).index_select(1, self.back)

    def attend_last(self, block: Block, x: Tensor, last: Tensor) -> Tensor:
        return self._attend(block.qkv(x)).index_select(1, self.ends)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Return what the rows of whole, padded prompts attend to, `(P, rows, heads, head_dim)`."""
        whole = _WholePrompts.apply(qkv, self.whole, self.own, self.prefix, self.count)
        prompts = whole.reshape(-1, len(self.whole) // self.count, *whole.shape[2:])  # (P * C, n + size, 3, heads, head_dim)
        q, k, v = (t.transpose(1, 2) for t in prompts.unbind(2))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        return attended.reshape(len(qkv), -1, *attended.shape[2:])


class _WholePrompts(torch.autograd.Function):
    """Gather whole, padded prompts from packed rows, `(P, N, ...)` to `(P, rows, ...)`.

    The gradient is gathered, too, and that of the prefix is a sum over the prompts. PyTorch's own would add rows in an order
    that differs from one run on a card to the next.
    """

    @staticmethod
    def forward(ctx: Any, packed: Tensor, whole: Tensor, own: Tensor, prefix: int, count: int) -> Tensor:
        ctx.save_for_backward(own)
        ctx.prefix, ctx.count = prefix, count
        return packed.index_select(1, whole)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (own,) = ctx.saved_tensors
        shared = gradient.unflatten(1, (ctx.count, -1))[:, :, : ctx.prefix].sum(1)
        return torch.cat([shared, gradient.index_select(1, own)], dim=1), None, None, None, None
