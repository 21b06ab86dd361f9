"""The text pass: features of many prompts that share their beginning, without wasted work and without approximation.

Under the causal mask of CLIP's text tower a position depends on earlier positions only. So nothing is computed after the
end-of-text token (EOT); the tokens that all prompts begin with are run once, and every prompt's own tokens attend to
their keys and values; and the last layer computes queries and MLP for the EOT positions alone.

All prompts of a class list lie packed in one matrix, the shared prefix first and the suffixes sorted by length behind it, so
that projections and MLPs are single large matrix products. Attention (kdpl/clip/blocks.py) takes few calls.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from kdpl.clip.blocks import Beside, Block, UnsupportedTowerError, add_beside, cast_together, check_beside
from kdpl.clip.prompt_layout import Layout, PromptLayout


class PromptedText:
    """A text tower that takes prompts with learned vectors: what towers of every kind share.

    It holds references, no copies: moving or casting the model moves and casts the tower.

    The attribute `max_rows` bounds the tokens in flight at a time, and with them the memory (0: no bound). What exceeds it, by
    many classes or by a context for each of many images, is computed piece by piece and again in the backward pass.
    """

    no_deep = ""  # why vectors cannot be put in at later layers; empty if they can
    max_rows = 0
    depth: int

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
        room, shape, width = layout.deep_room, tuple(vectors.shape), self.width
        if 0 < layer < self.depth and shape in [
            (*classes, n, width) for classes in ((), (len(layout),)) for n in range(room + 1)
        ]:
            return
        raise ValueError(
            f"Prompts {shape} for layer {layer} do not fit a text tower of {self.depth} layers and width {width}, and "
            f"{len(layout)} prompts with {room} slots at the same places: expected a layer from 1 to {self.depth - 1}, and at "
            f"most {room} vectors, (n, {width}) for all prompts or ({len(layout)}, n, {width}) for each."
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

    Args:
        model: a CLIP, or its text tower.

    Raises:
        UnsupportedTowerError: it is of another kind than the subclass runs.
    """

    kind: str  # in words
    pools: tuple[str, ...]
    causal_alone: bool  # with a causal mask and without a class token

    def __init__(self, model: nn.Module):
        self._text = text = getattr(model, "text", model)
        missing = [n for n in ("transformer", "token_embedding", "positional_embedding", "ln_final") if not hasattr(text, n)]
        causal = getattr(text, "attn_mask", True) is not None and not self.has_class_token
        self.pool = getattr(text, "pool_type", getattr(text, "text_pool_type", "argmax"))
        if missing or self.pool not in self.pools or (self.causal_alone and not causal):
            raise UnsupportedTowerError(
                f"The text tower {type(text).__name__} (missing {missing}, causal {causal}, pooling '{self.pool}') is not "
                f"{self.kind}: it can be a teacher, not a student."
            )
        self.blocks = [Block(b) for b in text.transformer.resblocks]

    @property
    def has_class_token(self) -> bool:
        return getattr(self._text, "cls_emb", None) is not None

    @property
    def device(self) -> torch.device:
        return self._text.token_embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the residual stream: that of the projections' weights."""
        return self.blocks[0].attn.in_proj_weight.dtype

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
    """The causal text transformer that is read at the EOT position; kdpl/clip/openclip/text_towers.py runs the others."""

    kind = "a causal transformer read at its EOT token, as OpenAI's CLIP has it"
    pools = ("argmax", "eos")
    causal_alone = True

    def layout(self, prompts: Sequence[Sequence[int]], pad: int, class_specific: bool = False) -> PromptLayout:
        """Return the constants of a list of prompts; nothing is computed behind their ends, so that no `pad` is needed."""
        return PromptLayout(self, prompts, class_specific)

    def _encode(self, layout: PromptLayout, ctx: Tensor | None, deep: Mapping[int, Tensor], beside: Beside) -> Tensor:
        x = layout.embed(ctx)  # (P, N, w)
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
            x = add_beside(beside, l, x, out)
        x = self._project(self._text.ln_final(x))
        return x if layout.sorted else x.index_select(1, layout.original_order)
