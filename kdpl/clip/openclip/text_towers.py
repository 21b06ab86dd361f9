"""Text towers whose prompts cannot share what they begin with: without a causal mask, pooled at a fixed place, with a class
token, or of the Hugging Face hub.

In such a tower every position may depend on every other, the padding among them. So prompts are run at the length that the
model was trained with, and exactly as its own forward pass has it; only the first layer's projections of entries that prompts
have in common, and the last layer's positions that nobody reads, are saved.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdpl.clip.blocks import Block, UnsupportedTowerError
from kdpl.clip.openclip.dense_layout import DenseLayout


class DenseText:
    """What the towers of this file share: prompts piece by piece, and the shape of what they return.

    It holds references, no copies: moving or casting the model moves and casts the tower. The attribute `max_rows` bounds the
    tokens in flight at a time (0: no bound); what exceeds it is computed piece by piece and again in the backward pass.
    """

    max_rows = 0
    width: int
    depth: int
    embed_dim: int
    context_length: int
    no_deep = ""  # why vectors cannot be put in at later layers; empty if they can

    def layout(self, prompts: Sequence[Sequence[int]], pad: int, class_specific: bool = False) -> DenseLayout:
        """Return the constants of a list of prompts."""
        return DenseLayout(self, prompts, pad, self.context_length, class_specific)

    def __call__(self, layout: DenseLayout, ctx: Tensor | None = None, deep: Sequence[Tensor] = ()) -> Tensor:
        """Return the text features of all prompts, not normalised: as `TextTower`."""
        if deep and self.no_deep:
            raise UnsupportedTowerError(self.no_deep)
        if len(deep) >= self.depth or any(layout.first_slot + len(d) > layout.length for d in deep):
            raise ValueError(
                f"{len(deep)} deep prompts of {max(map(len, deep))} vectors do not fit a text tower of {self.depth} layers "
                f"and {layout.length} tokens: expected fewer layers than the tower has."
            )
        own = ctx is not None and ctx.dim() == 3 and not layout.class_specific
        images = len(ctx) if own else 1
        if not self.max_rows or images * len(layout.rows) <= self.max_rows:
            features = self._encode(layout, ctx, deep)
        else:
            parts = []
            for start, part in layout.parts(self, self.max_rows):
                some = ctx[start : start + len(part)] if layout.class_specific else ctx
                at_once = max(1, self.max_rows // len(part.rows))
                pieces = some.split(at_once) if own else [some]
                parts.append(torch.cat([self._encode_checkpointed(part, piece, deep) for piece in pieces]))
            features = torch.cat(parts, dim=1)
        return features if own else features.squeeze(0)

    def _encode_checkpointed(self, layout: DenseLayout, ctx: Tensor | None, deep: Sequence[Tensor]) -> Tensor:
        """Encode, and recompute in the backward pass instead of storing activations."""
        if not torch.is_grad_enabled():
            return self._encode(layout, ctx, deep)
        return checkpoint(self._encode, layout, ctx, deep, use_reentrant=False, preserve_rng_state=False)

    def _encode(self, layout: DenseLayout, ctx: Tensor | None, deep: Sequence[Tensor]) -> Tensor:
        """Return the features `(P, C, d)`."""
        raise NotImplementedError


class WholeText(DenseText):
    """A text transformer of open_clip that is not read at the end of a causal prompt.

    Args:
        text: a `TextTransformer`, or a `CLIP` that holds its parts.

    Raises:
        UnsupportedTowerError: its blocks, or its pooling, are of another kind.
    """

    def __init__(self, text: nn.Module):
        missing = [n for n in ("transformer", "token_embedding", "positional_embedding", "ln_final") if not hasattr(text, n)]
        self.pool = getattr(text, "pool_type", getattr(text, "text_pool_type", "argmax"))
        if missing or self.pool not in ("first", "last", "argmax", "eos"):
            raise UnsupportedTowerError(
                f"The text tower {type(text).__name__} (missing {missing}, pooling '{self.pool}') is not a text transformer of "
                "open_clip that gives one feature: it can be a teacher, not a student."
            )
        self._text = text
        self.blocks = [Block(b) for b in text.transformer.resblocks]

    @property
    def device(self) -> torch.device:
        return self._text.token_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.blocks[0].attn.in_proj_weight.dtype

    @property
    def has_class_token(self) -> bool:
        return getattr(self._text, "cls_emb", None) is not None

    @property
    def context_length(self) -> int:
        return len(self._text.positional_embedding) - self.has_class_token

    @property
    def width(self) -> int:
        return self._text.positional_embedding.shape[1]

    @property
    def depth(self) -> int:
        return len(self.blocks)

    @property
    def vocabulary(self) -> int:
        """Token ids that it knows."""
        return self._text.token_embedding.num_embeddings

    @property
    def embed_dim(self) -> int:
        """Width d of the text features."""
        projection = self._text.text_projection
        if projection is None:
            return self.width
        return projection.out_features if isinstance(projection, nn.Linear) else projection.shape[1]

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(..., w)` of token ids, without positions, in the precision of the tower."""
        return self._text.token_embedding(ids).to(self.dtype)

    @torch.no_grad()
    def place(self, rows: Tensor, positions: Tensor) -> Tensor:
        return rows + self._text.positional_embedding[positions].to(rows.dtype)

    def _encode(self, layout: DenseLayout, ctx: Tensor | None, deep: Sequence[Tensor]) -> Tensor:
        rows = layout.embed(ctx)  # (P, U, w)
        index, mask, read = layout.index, self._mask(layout), self._read(layout)
        if self.has_class_token:
            cls = (self._text.cls_emb + self._text.positional_embedding[-1]).to(rows.dtype)
            rows = torch.cat([rows, cls.expand(len(rows), 1, -1)], dim=1)  # (P, U + 1, w)
            index = F.pad(index, (0, 1), value=rows.shape[1] - 1)  # (C, L + 1)
        x = rows[:, index]  # (P, C, L, w)
        for l, block in enumerate(self.blocks):
            if 0 < l <= len(deep):
                prompt, start = deep[l - 1].to(x.dtype), layout.first_slot
                prompt = prompt.expand(*x.shape[:2], -1, -1)  # (P, C, n, w)
                x = torch.cat([x[:, :, :start], prompt, x[:, :, start + prompt.shape[2] :]], dim=2)
            if l < self.depth - 1:
                qkv = block.qkv(rows)[:, index] if l == 0 else block.qkv(x)  # (P, C, L, 3, heads, head_dim)
                x = block.finish(x, _attend(*qkv.unbind(3), mask))
            else:  # the feature is read at one position: no other of the last layer is needed
                qkv = block.qkv(x)
                q, k, v = qkv.unbind(3)
                classes = torch.arange(len(read), device=read.device)
                one = None if mask is None else mask[classes, :, read].unsqueeze(2)  # (C, 1, 1, L)
                x = block.finish(x[:, classes, read].unsqueeze(2), _attend(q[:, classes, read].unsqueeze(2), k, v, one))
        x = self._text.ln_final(x.squeeze(2))  # (P, C, w)
        projection = self._text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x.to(projection.dtype) @ projection

    def _read(self, layout: DenseLayout) -> Tensor:
        """Return the position `(C,)` at which each prompt's feature is read."""
        if self.has_class_token or self.pool == "last":
            return torch.full_like(layout.ends, layout.length - 1 + self.has_class_token)
        if self.pool == "first":
            return torch.zeros_like(layout.ends)
        if self.pool == "eos":
            eos = getattr(self._text, "eos_id", getattr(self._text, "text_eos_id", None))
            return ((layout.ids == eos) & ~layout.is_slot).int().argmax(dim=1)
        return layout.ids.argmax(dim=1)

    def _mask(self, layout: DenseLayout) -> Tensor | None:
        """Return which positions each position attends to, `(C, 1, L, L)`; None: all."""
        causal = self._text.attn_mask
        if causal is not None:
            causal = (causal == 0)[None, None]  # (1, 1, L, L)
        if not self.has_class_token:
            return None if causal is None else causal.expand(len(layout), -1, -1, -1)
        seen = (layout.ids != self._text.pad_id) | layout.is_slot  # (C, L)
        # open_clip masks what is one position behind the padding, as the published weights were trained
        seen = F.pad(seen, (0, 1) if self._text.correct_cls_mask else (1, 0), value=True)[:, None, None]  # (C, 1, 1, L + 1)
        return seen.expand(-1, -1, seen.shape[-1], -1) if causal is None else causal & seen


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention within each prompt: q `(P, C, l, heads, head_dim)`, k and v with L positions."""
    shape, q, k, v = q.shape, *(t.transpose(2, 3) for t in (q, k, v))  # (P, C, heads, L, head_dim)
    if mask is not None:
        mask = mask.expand(len(q), *mask.shape).flatten(0, 1)
    attended = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)), attn_mask=mask)
    return attended.transpose(1, 2).reshape(shape)


class HubText(DenseText):
    """A text tower of the Hugging Face hub, run from embeddings (`inputs_embeds`) under the mask of its own tokens.

    Padding is masked in these towers, so that prompts are no longer than the longest of them.

    Args:
        text: open_clip's `HFTextEncoder`.
        context_length: ids of a prompt at most.
    """

    no_deep = "A text tower of the Hugging Face hub takes learned vectors at its input alone: set its prompt depth to 1."

    def __init__(self, text: nn.Module, context_length: int):
        self._text, self.context_length = text, context_length
        self._embedding = text.transformer.get_input_embeddings()
        config = text.config
        self.depth = next(
            getattr(config, key) for key in ("num_hidden_layers", "encoder_layers", "num_layers") if hasattr(config, key)
        )

    @property
    def device(self) -> torch.device:
        return self._embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._embedding.weight.dtype

    @property
    def width(self) -> int:
        return self._embedding.weight.shape[1]

    @property
    def vocabulary(self) -> int:
        """Token ids that it knows."""
        return len(self._embedding.weight)

    @property
    def embed_dim(self) -> int:
        """Width d of the text features."""
        return self._text.output_dim

    def layout(self, prompts: Sequence[Sequence[int]], pad: int, class_specific: bool = False) -> DenseLayout:
        longest = min(max(map(len, prompts), default=0), self.context_length)
        return DenseLayout(self, prompts, pad, longest, class_specific)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(..., w)` of token ids, in the precision of the tower."""
        return self._embedding(ids)

    def place(self, rows: Tensor, positions: Tensor) -> Tensor:
        return rows  # the model adds its positions itself

    def _encode(self, layout: DenseLayout, ctx: Tensor | None, deep: Sequence[Tensor]) -> Tensor:
        x = layout.embed(ctx)[:, layout.index]  # (P, C, L, w)
        mask = ((layout.ids != self._text.config.pad_token_id) | layout.is_slot).long()  # (C, L)
        mask = mask.expand(len(x), -1, -1).flatten(0, 1)
        out = self._text.transformer(inputs_embeds=x.flatten(0, 1), attention_mask=mask)
        return self._text.proj(self._text.pooler(out, mask)).unflatten(0, x.shape[:2])
