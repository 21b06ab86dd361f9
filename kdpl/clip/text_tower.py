"""The text pass: features of many prompts that share their beginning, without wasted work and without approximation.

Under the causal mask of CLIP's text tower a position depends on earlier ones only: nothing is computed after the end-of-text
token (EOT), what all prompts begin with is run once, and the last layer computes queries and MLP for the EOT positions alone
(docs/text_pass.md). `WholeText` and `HubText` run other towers, whose positions may depend on every other, at the length that
the model was trained with, exactly as its own forward pass has it.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdpl.clip.blocks import Beside, Block, UnsupportedTowerError, cast_together, check_beside, with_beside
from kdpl.clip.prompt_layout import DenseLayout, Layout, PromptLayout

POOLS = ("first", "last", "argmax", "eos")  # how a text transformer is read at one position


class PromptedText:
    """A text tower that takes prompts with learned vectors: what towers of every kind share.

    It holds references, no copies: moving or casting the model moves and casts the tower.

    The attribute `max_rows` bounds the tokens in flight at a time, and with them the memory (0: no bound). What exceeds it, by
    many classes or by a context for each of many images, is computed piece by piece and again in the backward pass.
    """

    no_deep = ""  # why vectors cannot be put in at later layers; empty if they can
    max_rows = 0
    depth: int  # layers
    width: int  # w, of token embeddings
    embed_dim: int  # d, of the features
    context_length: int  # ids of a prompt at most
    vocabulary: int  # token ids that it knows

    def __call__(
        self,
        layout: Layout,
        ctx: Tensor | None = None,
        deep: Mapping[int, Tensor] | Sequence[Tensor] = (),
        beside: Beside | None = None,
    ) -> Tensor:
        """Return the text features of all prompts, not normalised.

        Args:
            layout: the prompts, of this tower's `layout`.
            ctx: learned vectors for their slots: `(n, w)` the same for all, `(B, n, w)` one set per image, or `(C, n, w)`
                with a class-specific layout. None where the prompts have no slots.
            deep: prompts by the number of the layer at whose input they take the place of what has become of the learned
                vectors, or a sequence of those of the layers 1, 2, ...: `(n, w)` the same for all, or `(C, n, w)` for each.
            beside: functions by layer, counted from 0, of a block's input and output `(..., w)` to what is added to its output.
                A function works on every row by itself, in fp32 unless there is autocast.

        Returns:
            `(C, d)`, or `(B, C, d)` for one context per image, in the order of the layout's prompts.

        Raises:
            UnsupportedTowerError: the tower takes no prompts at later layers, and no functions beside them.
            ValueError: prompts of a wrong shape, or of a layer that the tower does not have.
        """
        deep = dict(deep) if isinstance(deep, Mapping) else dict(enumerate(deep, start=1))
        beside = beside or {}
        if (deep or beside) and self.no_deep:
            raise UnsupportedTowerError(self.no_deep)
        if beside:
            check_beside(beside, self.depth, "text tower")
        for layer, vectors in deep.items():
            self._check_deep(layout, layer, vectors)
        per_image = ctx is not None and ctx.dim() == 3 and not layout.class_specific
        own = {layer for layer, vectors in deep.items() if vectors.dim() == 3}  # layers whose prompts differ between classes
        size = (layout.apart if own else layout).size
        if not self.max_rows or (len(ctx) if per_image else 1) * size <= self.max_rows:
            features = self._encode(layout, ctx, deep, beside)
        else:
            parts = []
            for start, part in layout.parts(self.max_rows, bool(own)):
                some = slice(start, start + len(part))
                part_ctx = ctx[some] if layout.class_specific else ctx
                part_deep = {layer: vectors[some] if layer in own else vectors for layer, vectors in deep.items()}
                part_size = (part.apart if own else part).size
                pieces = part_ctx.split(max(1, self.max_rows // part_size)) if per_image else [part_ctx]
                parts.append(torch.cat([self._encode_checkpointed(part, piece, part_deep, beside) for piece in pieces]))
            features = torch.cat(parts, dim=1)
        return features if per_image else features.squeeze(0)

    def _check_deep(self, layout: Layout, layer: int, vectors: Tensor) -> None:
        """Refuse prompts of a layer that do not fit."""
        shape, room, width = tuple(vectors.shape), layout.deep_room, self.width
        of_all_or_each = shape[:-2] in ((), (len(layout),)) and len(shape) > 1
        if not (0 < layer < self.depth and of_all_or_each and shape[-2] <= room and shape[-1] == width):
            raise ValueError(
                f"Prompts {shape} for layer {layer} do not fit: expected a layer from 1 to {self.depth - 1}, and (n, {width}) "
                f"for all or ({len(layout)}, n, {width}) for each, at most the {room} slots at the same places in all prompts."
            )

    def _encode_checkpointed(self, layout: Layout, ctx: Tensor | None, deep: Mapping[int, Tensor], beside: Beside) -> Tensor:
        """Encode, and recompute in the backward pass instead of storing activations."""
        if not torch.is_grad_enabled():
            return self._encode(layout, ctx, deep, beside)
        return checkpoint(self._encode, layout, ctx, deep, beside, use_reentrant=False, preserve_rng_state=False)

    def _encode(self, layout: Layout, ctx: Tensor | None, deep: Mapping[int, Tensor], beside: Beside) -> Tensor:
        """Return the features `(P, C, d)`; P is 1, or B for one context per image."""
        raise NotImplementedError


class TransformerText(PromptedText):
    """The text transformer of OpenAI's CLIP and of open_clip.

    A causal one is read at a prompt's end, and no position depends on later ones.

    Args:
        model: a CLIP, or its text tower.

    Raises:
        UnsupportedTowerError: it is of another kind.
    """

    def __init__(self, model: nn.Module):
        self._text = text = getattr(model, "text", model)
        missing = [n for n in ("transformer", "token_embedding", "positional_embedding", "ln_final") if not hasattr(text, n)]
        self.pool = getattr(text, "pool_type", getattr(text, "text_pool_type", "argmax"))
        if missing or self.pool not in POOLS:
            raise UnsupportedTowerError(
                f"The text tower {type(text).__name__} (missing {missing}, pooling '{self.pool}') is not a text transformer "
                "of open_clip that gives one feature: choose another CLIP."
            )
        self.blocks = [Block(b) for b in text.transformer.resblocks]
        self.has_class_token = getattr(text, "cls_emb", None) is not None
        causal = getattr(text, "attn_mask", True) is not None  # OpenAI's has its mask in the blocks
        self.is_causal = causal and not self.has_class_token and self.pool in ("argmax", "eos")
        length, self.width = text.positional_embedding.shape
        self.context_length, self.depth = length - self.has_class_token, len(self.blocks)
        self.vocabulary = text.token_embedding.num_embeddings
        projection = text.text_projection
        made = self.width if projection is None else projection.shape[1] if isinstance(projection, Tensor) else 0
        self.embed_dim = made or projection.out_features

    @property
    def device(self) -> torch.device:
        return self._text.token_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the residual stream: that of the projections' weights."""
        return self.blocks[0].attn.in_proj_weight.dtype

    def norm(self, layer: int, x: Tensor) -> Tensor:
        """Return rows `(..., w)` behind the first layer norm of a block, which is what its attention sees."""
        return self.blocks[layer].ln_1(x)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings `(..., w)` of token ids, without positions, in the precision of the tower."""
        return self._text.token_embedding(ids).to(self.dtype)

    @torch.no_grad()
    def place(self, rows: Tensor, positions: Tensor) -> Tensor:
        """Return embeddings `(U, w)` with their positions `(U,)` added."""
        return rows + self._text.positional_embedding[positions].to(rows.dtype)

    def _project(self, x: Tensor) -> Tensor:
        projection = self._text.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, nn.Module) else x.to(projection.dtype) @ projection


class TextTower(TransformerText):
    """The causal text transformer that is read at the EOT position; `WholeText` runs the others."""

    def layout(self, prompts: Sequence[Sequence[int]], pad: int, class_specific: bool = False) -> PromptLayout:
        """Return the constants of a list of prompts; nothing is computed behind their ends, so that no `pad` is needed."""
        return PromptLayout(self, prompts, class_specific)

    def _encode(self, layout: PromptLayout, ctx: Tensor | None, deep: Mapping[int, Tensor], beside: Beside) -> Tensor:
        x = layout.embed(ctx)  # (P, N, w)
        if deep:
            deep = dict(zip(deep, cast_together(tuple(deep.values()), x.dtype), strict=True))
        for l, block in enumerate(self.blocks):
            if l in deep:
                layout, x = layout.replace(x, deep[l])
            if l < self.depth - 1:
                out = block.finish(x, layout.attention.attend(block.qkv(x)))
            else:  # the feature is read at EOT: no other position of the last layer is needed
                attended = layout.attention.attend_last(block, x, layout.eot)
                x = x.index_select(1, layout.eot)
                out = block.finish(x, attended)  # (P, C, w)
            x = with_beside(beside[l], x, out) if l in beside else out
        x = self._project(self._text.ln_final(x))
        return x if layout.sorted else x.index_select(1, layout.original_order)


class WholeText(TransformerText):
    """A text transformer of open_clip that is not read at the end of a causal prompt."""

    def layout(self, prompts: Sequence[Sequence[int]], pad: int, class_specific: bool = False) -> DenseLayout:
        """Return the constants of a list of prompts, filled up with `pad`."""
        return DenseLayout(self, prompts, pad, self.context_length, class_specific)

    def _encode(self, layout: DenseLayout, ctx: Tensor | None, deep: Mapping[int, Tensor], beside: Beside) -> Tensor:
        x = layout.embed(ctx)[:, layout.index]  # (P, C, L, w)
        mask, read = self._mask(layout), self._read(layout)
        if self.has_class_token:
            cls = (self._text.cls_emb + self._text.positional_embedding[-1]).to(x.dtype)
            x = torch.cat([x, cls.expand(*x.shape[:2], 1, -1)], dim=2)  # (P, C, L + 1, w)
        for l, block in enumerate(self.blocks):
            if l in deep:
                x = _replace_at(x, deep[l], layout.first_slot)
            if l < self.depth - 1:
                out = block.finish(x, _attend(*block.qkv(x).unbind(3), mask))  # of qkv (P, C, L, 3, heads, head_dim)
            else:  # the feature is read at one position: no other of the last layer is needed
                q, k, v = block.qkv(x).unbind(3)
                classes = torch.arange(len(read), device=read.device)
                one = None if mask is None else mask[classes, :, read].unsqueeze(2)  # (C, 1, 1, L)
                x = x[:, classes, read].unsqueeze(2)
                out = block.finish(x, _attend(q[:, classes, read].unsqueeze(2), k, v, one))
            x = with_beside(beside[l], x, out) if l in beside else out
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
        self.vocabulary, self.width = self._embedding.weight.shape
        self.embed_dim, depths = text.output_dim, ("num_hidden_layers", "encoder_layers", "num_layers")
        self.depth = next(getattr(text.config, key) for key in depths if hasattr(text.config, key))

    @property
    def device(self) -> torch.device:
        return self._embedding.weight.device

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
