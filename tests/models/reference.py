"""Prompted passes the plain way: open_clip's own `encode_text` and `encode_image`, with hooks that put learned vectors in.

Nothing of kdpl's passes is used: prompts run at their full length, every layer computes every position, and masks, poolings and
projections are the library's. Of a student only its learned parameters and its list of prompts are taken.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

Prompts = Sequence[Sequence[int]]  # token ids, and -1 - i for the learned vector i


def prompted_text(
    model: nn.Module,
    prompts: Prompts,
    ctx: Tensor,
    deep: Mapping[int, Tensor] | Sequence[Tensor],
    length: int,
    pad: int,
    ordinary: int,
    beside: Mapping[int, Callable[[Tensor, Tensor], Tensor]] | None = None,
) -> Tensor:
    """Return the features `(C, d)` of prompts, not normalised.

    Args:
        model: of open_clip.
        ctx: `(n, w)`, or `(C, n, w)`.
        deep: `(n, w)` or `(C, n, w)` by layer, or for each of the layers 1, 2, ...
        length: ids of a prompt; the id `pad` fills up.
        ordinary: an id that is neither padding nor an end, which stands in the slots for what looks at ids.
        beside: by layer what is added to a block's output, of its input and output.
    """
    text = getattr(model, "text", model)
    filled = [[*prompt, *[pad] * (length - len(prompt))] for prompt in prompts]
    places = [(c, p, -1 - e) for c, entries in enumerate(filled) for p, e in enumerate(entries) if e < 0]
    classes, positions, index = torch.tensor(places, dtype=torch.long).reshape(-1, 3).unbind(1)

    def put(x: Tensor, vectors: Tensor) -> Tensor:
        own = vectors[classes, index] if vectors.dim() == 3 else vectors[index]
        return x.index_put((classes, positions), own.to(x.dtype))

    own = hasattr(text, "token_embedding")
    embedding = text.token_embedding if own else text.transformer.get_input_embeddings()
    with ExitStack() as stack:
        if ctx is not None:
            stack.enter_context(embedding.register_forward_hook(lambda module, args, output: put(output, ctx)))
        _add_beside(stack, getattr(getattr(text, "transformer", None), "resblocks", ()), beside)
        for layer, vectors in deep.items() if isinstance(deep, Mapping) else enumerate(deep, start=1):
            assert text.transformer.batch_first
            _before(stack, text.transformer.resblocks[layer], lambda x, vectors=vectors: put(x, vectors))
        ids = torch.tensor([[ordinary if e < 0 else e for e in entries] for entries in filled])
        return model.encode_text(ids, normalize=False)


def _add_beside(stack: ExitStack, blocks: Sequence[nn.Module], beside: Mapping[int, Callable] | None) -> None:
    """Add what functions give of a block's input and output to its output."""
    for layer, function in (beside or {}).items():
        hook = lambda module, args, output, function=function: output + function(args[0], output)  # noqa: E731
        stack.enter_context(blocks[layer].register_forward_hook(hook))


def image_beside(model: nn.Module, images: Tensor, beside: Mapping[int, Callable[[Tensor, Tensor], Tensor]]) -> Tensor:
    """Return the features `(B, d)` of images, not normalised, with functions beside blocks."""
    with ExitStack() as stack:
        visual = model.visual
        _add_beside(stack, visual.trunk.blocks if hasattr(visual, "trunk") else visual.transformer.resblocks, beside)
        return model.encode_image(images, normalize=False)


def prompted_image(model: nn.Module, images: Tensor, prompts: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """Return the features `(B, d)` of images with learned tokens `(n, w)`, not normalised.

    The tokens stand behind the image's own. In timm's EVA they stand before the patches instead, among the class tokens, which
    the library itself leaves unturned by rotary positions; the order of the others makes no difference to attention.
    """
    visual, n = model.visual, len(prompts)
    trunk = getattr(visual, "trunk", None)
    eva = type(trunk).__name__ == "Eva"
    start = trunk.num_prefix_tokens if eva else None  # where the learned tokens begin; None: at the end
    blocks = visual.transformer.resblocks if trunk is None else trunk.blocks

    def put(x: Tensor, vectors: Tensor, taken: int) -> Tensor:
        vectors = vectors.to(x.dtype).expand(len(x), -1, -1)
        at = x.shape[1] - taken if start is None else start
        return torch.cat([x[:, :at], vectors, x[:, at + taken :]], dim=1)

    def drop(x: Tensor) -> Tensor:
        return put(x, x.new_empty(0, x.shape[2]), n)

    with ExitStack() as stack:
        _before(stack, visual.ln_pre if trunk is None else trunk.norm_pre, lambda x: put(x, prompts, 0))
        for layer, vectors in enumerate(deep, start=1):
            _before(stack, blocks[layer], lambda x, vectors=vectors: put(x, vectors, n))
        if trunk is None:
            stack.enter_context(visual.transformer.register_forward_hook(lambda module, args, output: drop(output)))
        else:
            _before(stack, trunk.norm, drop)
        for block in blocks if eva else ():
            block.attn.num_prefix_tokens += n
            stack.callback(setattr, block.attn, "num_prefix_tokens", block.attn.num_prefix_tokens - n)
        return model.encode_image(images, normalize=False)


def _before(stack: ExitStack, module: nn.Module, change: Callable[[Tensor], Tensor]) -> None:
    """Change the first argument of a module's forward."""
    stack.enter_context(module.register_forward_pre_hook(lambda module, args: (change(args[0]), *args[1:])))


class LibraryTowers:
    """A CLIP of ours whose passes are the library's own, with the vectors that they are given."""

    def __init__(self, clip: Any, model: nn.Module):
        self.clip, self.model = clip, model
        try:
            vision = clip.vision
        except ValueError:  # it takes no learned tokens
            vision = clip
        self.text, self.vision = _Tower(clip.text, self._text), _Tower(vision, self._vision)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.clip, name)

    def _text(self, layout: Any, ctx: Tensor | None = None, deep: Any = (), beside: Any = None) -> Tensor:
        tokenizer = self.clip.tokenizer
        rest = deep, tokenizer.context_length, tokenizer.pad, tokenizer.encode("a")[-1], beside
        if ctx is not None and ctx.dim() == 3 and not layout.class_specific:  # one context for each image
            return torch.stack([prompted_text(self.model, layout.prompts, own, *rest) for own in ctx])
        return prompted_text(self.model, layout.prompts, ctx, *rest)

    def _vision(self, images: Tensor, prompts: Tensor | None = None, deep: Any = (), beside: Any = None) -> Tensor:
        if beside:
            return image_beside(self.model, images, beside)
        return self.image_features(images) if prompts is None else prompted_image(self.model, images, prompts, deep)

    def image_features(self, images: Tensor) -> Tensor:
        return self.model.encode_image(images, normalize=False)


class _Tower:
    def __init__(self, tower: Any, encode: Callable[..., Tensor]):
        self.tower, self.encode = tower, encode

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        return self.encode(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tower, name)


def student_output(model: nn.Module, student: nn.Module, names: Sequence[str], images: Tensor) -> tuple[Tensor, Tensor]:
    """Return a student's normalised image features `(B, d)` and text features `(C, d)` or `(B, C, d)`, computed by the library.

    Args:
        model: of open_clip, with the weights of the student's CLIP.
    """
    prepared, clip = student.prepare(names), student.clip
    student.clip = LibraryTowers(clip, model)
    try:
        output = student(images, prepared)
    finally:
        student.clip = clip
    return output.image_features, output.text_features
