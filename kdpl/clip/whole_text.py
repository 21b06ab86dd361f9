"""Text towers whose prompts cannot share what they begin with: without a causal mask, pooled at a fixed place, with a class
token, or of the Hugging Face hub.

In such a tower every position may depend on every other, the padding among them. So prompts are run at the length that the
model was trained with, and exactly as its own forward pass has it; only the first layer's projections of entries that prompts
have in common, and the last layer's positions that nobody reads, are saved.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.clip.blocks import Beside, add_beside
from kdpl.clip.prompt_layout import DenseLayout
from kdpl.clip.text_tower import PromptedText, TransformerText


class WholeText(TransformerText):
    """A text transformer of open_clip that is not read at the end of a causal prompt."""

    kind = "a text transformer of open_clip that gives one feature"
    pools = ("first", "last", "argmax", "eos")
    causal_alone = False

    def layout(self, prompts: Sequence[Sequence[int]], pad: int, class_specific: bool = False) -> DenseLayout:
        """Return the constants of a list of prompts, filled up with `pad`."""
        return DenseLayout(self, prompts, pad, self.context_length, class_specific)

    def _encode(self, layout: DenseLayout, ctx: Tensor | None, deep: Mapping[int, Tensor], beside: Beside) -> Tensor:
        rows = layout.embed(ctx)  # (P, U, w)
        index, mask, read = layout.index, self._mask(layout), self._read(layout)
        if self.has_class_token:
            cls = (self._text.cls_emb + self._text.positional_embedding[-1]).to(rows.dtype)
            rows = torch.cat([rows, cls.expand(len(rows), 1, -1)], dim=1)  # (P, U + 1, w)
            index = F.pad(index, (0, 1), value=rows.shape[1] - 1)  # (C, L + 1)
        x = rows[:, index]  # (P, C, L, w)
        for l, block in enumerate(self.blocks):
            if l in deep:
                x = _replace_at(x, deep[l], layout.first_slot)
            if l < self.depth - 1:
                qkv = block.qkv(rows)[:, index] if l == 0 else block.qkv(x)  # (P, C, L, 3, heads, head_dim)
                out = block.finish(x, _attend(*qkv.unbind(3), mask))
            else:  # the feature is read at one position: no other of the last layer is needed
                q, k, v = block.qkv(x).unbind(3)
                classes = torch.arange(len(read), device=read.device)
                one = None if mask is None else mask[classes, :, read].unsqueeze(2)  # (C, 1, 1, L)
                x = x[:, classes, read].unsqueeze(2)
                out = block.finish(x, _attend(q[:, classes, read].unsqueeze(2), k, v, one))
            x = add_beside(beside, l, x, out)
        return self._project(self._text.ln_final(x.squeeze(2)))  # (P, C, d)

    def _read(self, layout: DenseLayout) -> Tensor:
        """Return the position `(C,)` at which each prompt's feature is read."""
        if self.has_class_token or self.pool == "last":
            return torch.full_like(layout.ids[:, 0], layout.length - 1 + self.has_class_token)
        if self.pool == "first":
            return torch.zeros_like(layout.ids[:, 0])
        if self.pool == "eos":
            eos = getattr(self._text, "eos_id", getattr(self._text, "text_eos_id", None))
            return ((layout.ids == eos) & ~layout.is_slot).int().argmax(dim=1)
        return layout.ids.argmax(dim=1)

    def _mask(self, layout: DenseLayout) -> Tensor | None:
        """Return which positions each position attends to, `(C, 1, L, L)`; None: all."""
        text, causal = self._text, self._text.attn_mask
        if causal is not None:
            causal = (causal == 0)[None, None]  # (1, 1, L, L)
        if not self.has_class_token and not getattr(text, "use_pad_mask", False):
            return None if causal is None else causal.expand(len(layout), -1, -1, -1)
        seen = (layout.ids != text.pad_id) | layout.is_slot  # (C, L)
        if self.has_class_token:
            # open_clip masks what is one position behind the padding, as the published weights were trained
            seen = F.pad(seen, (0, 1) if text.correct_cls_mask else (1, 0), value=True)  # (C, L + 1)
        seen = seen[:, None, None]  # (C, 1, 1, L)
        return seen.expand(-1, -1, seen.shape[-1], -1) if causal is None else causal & seen


def _replace_at(x: Tensor, vectors: Tensor, start: int) -> Tensor:
    """Put vectors `(n, w)` or `(C, n, w)` in place of the positions from `start` on in `x (P, C, L, w)`."""
    n = vectors.shape[-2]
    before, _, behind = x.split([start, n, x.shape[-2] - start - n], dim=-2)
    return torch.cat([before, vectors.to(x.dtype).expand(*x.shape[:2], -1, -1), behind], dim=-2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Attention within each prompt: q `(P, C, l, heads, head_dim)`, k and v with L positions."""
    shape, q, k, v = q.shape, *(t.transpose(2, 3) for t in (q, k, v))  # (P, C, heads, L, head_dim)
    if mask is not None:
        mask = mask.expand(len(q), *mask.shape).flatten(0, 1)
    attended = F.scaled_dot_product_attention(*(t.flatten(0, 1) for t in (q, k, v)), attn_mask=mask)
    return attended.transpose(1, 2).reshape(shape)


class HubText(PromptedText):
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

    def _encode(self, layout: DenseLayout, ctx: Tensor | None, deep: Mapping[int, Tensor], beside: Beside) -> Tensor:
        x = layout.embed(ctx)[:, layout.index]  # (P, C, L, w)
        mask = ((layout.ids != self._text.config.pad_token_id) | layout.is_slot).long()  # (C, L)
        mask = mask.expand(len(x), -1, -1).flatten(0, 1)
        out = self._text.transformer(inputs_embeds=x.flatten(0, 1), attention_mask=mask)
        return self._text.proj(self._text.pooler(out, mask)).unflatten(0, x.shape[:2])
