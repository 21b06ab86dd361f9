"""Parts shared by the prompt learners: text context, visual prompts, published names of parameters, checks of options."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kdpl.clip.model import Clip, normalized
from kdpl.clip.names import Architecture
from kdpl.clip.prompt_layout import Layout
from kdpl.text.prompts import context_prompts, encode

INIT_STD = 0.02  # of randomly initialised prompts


class TextContext:
    """The learned context tokens of a text prompt: initial values, and the prompts of a list of names.

    Args:
        clip: the frozen CLIP.
        words: CTX_INIT; empty: random initialisation.
        n_ctx: N_CTX.
        fixed_count: True: N_CTX tokens are learned, the first of the words (MaPLe, PromptSRC); False: all tokens of the
            words, and N_CTX is ignored (CoOp, CoCoOp).
        position: of the class name: "end", "middle" or "front".
        behind: what stands behind the name: a full stop, or words such as ", a type of pet.".
    """

    def __init__(self, clip: Clip, words: str, n_ctx: int, fixed_count: bool, position: str = "end", behind: str = "."):
        tokens = encode(words.replace("_", " "), clip.tokenizer) if words else []
        if tokens and not fixed_count:
            n_ctx = len(tokens)
        if len(tokens) < n_ctx:
            words, tokens = "", []
        self.clip, self.words, self.n_ctx, self.position, self.behind = clip, words, n_ctx, position, behind
        self.tokens = tokens[:n_ctx]

    def initial(self, classes: int | None = None) -> Tensor:
        """Return the initial value in fp32, `(n_ctx, w_t)`, or `(classes, n_ctx, w_t)`: the words' embeddings or N(0, 0.02)."""
        tower = self.clip.text
        if self.tokens:
            value = tower.embed(torch.tensor(self.tokens, device=tower.device)).float()
            return value if classes is None else value.repeat(classes, 1, 1)
        shape = (self.n_ctx, tower.width) if classes is None else (classes, self.n_ctx, tower.width)
        return random_prompts(*shape)

    @property
    def length_without_name(self) -> int:
        """The tokens of a prompt beside those of the class name."""
        (prompt,) = self._prompts(["cat"])
        return len(prompt) - 1

    def _prompts(self, names: Sequence[str]) -> list[tuple[int, ...]]:
        return context_prompts(names, self.n_ctx, self.words, self.position, self.clip.tokenizer, self.behind)

    def layout(self, names: Sequence[str], class_specific: bool = False) -> Layout:
        """Return the prompts of these class names, ready for the text pass."""
        prompts = self._prompts(names)
        longest = self.clip.text.context_length - self.clip.tokenizer.stripped
        for name, prompt in zip(names, prompts, strict=True):
            if len(prompt) > longest:
                raise ValueError(
                    f"The prompt of class name '{name}' has {len(prompt)} tokens, {self.n_ctx} of them context; the text tower "
                    f"takes at most {longest}: shorten the name or the context (N_CTX, CTX_INIT)."
                )
        return self.clip.layout(prompts, class_specific)


class VisualPrompts:
    """A mixin for students that prompt the image tower: `visual_prompts` are the tokens `(n, w_v)` of each layer."""

    visual_prompts: Sequence[Tensor]

    def image_features(self, images: Tensor) -> Tensor:
        """Return normalised features `(B, d)` in fp32."""
        first, *deep = self.visual_prompts
        return normalized(self.clip.vision(images, first, deep))


def deep_visual_prompts(learned: nn.Module, n: int, width: int, depth: int) -> list[nn.Parameter]:
    """Register visual tokens `(n, width)` for `depth` layers under the published names; return them by layer."""
    names = ["image_encoder.VPT"]
    names += [f"image_encoder.transformer.resblocks.{layer}.VPT_shallow" for layer in range(1, depth)]
    return [put_parameter(learned, name, random_prompts(n, width)) for name in names]


def random_prompts(*shape: int) -> Tensor:
    """Return new prompt vectors, N(0, 0.02)."""
    return torch.empty(shape).normal_(std=INIT_STD)


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, through which a gradient passes times a factor."""
    return x.detach() + factor * (x - x.detach())


def put_parameter(module: nn.Module, name: str, value: Tensor) -> nn.Parameter:
    """Register and return a parameter under a dotted name such as `image_encoder.VPT`, creating the modules on its path."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_parameter(last, nn.Parameter(value))
    return getattr(module, last)


def check_context(node: str, key: str, length: int, architecture: Architecture, name: str, words: bool) -> None:
    """Refuse a number of context tokens, `<node>.<key>`, that the CLIP `name` cannot take.

    Args:
        words: the context begins as words, whose number counts in place of `length`.

    Raises:
        ValueError: both values are named.
    """
    if length < 1:
        raise ValueError(f"{node}.{key} is {length}, expected at least 1 token.")
    if key.endswith("VISION"):
        return
    if not words and length >= architecture.context_length - 2:
        raise ValueError(
            f"{node}.{key} is {length}, but MODEL.BACKBONE.NAME '{name}' takes {architecture.context_length} "
            "tokens, the class name and its ends among them: set it lower."
        )


def check_depth(node: str, key: str, depth: int, architecture: Architecture, name: str) -> None:
    """Refuse a number of layers with prompts, `<node>.<key>`, that the CLIP `name` does not have.

    Raises:
        ValueError: both values are named.
    """
    if not key.endswith("TEXT") and not architecture.is_vit:
        raise ValueError(
            f"{node} learns visual prompts and needs a ViT, but MODEL.BACKBONE.NAME '{name}' is a ResNet "
            "or another tower. Choose a ViT such as 'ViT-B/32', or the trainer CoOp or CoCoOp."
        )
    layers = architecture.text_depth if key.endswith("TEXT") else architecture.vision_depth
    if key == "PROMPT_DEPTH":
        layers = min(layers, architecture.text_depth)
    if not key.endswith("VISION") and depth > 1 and architecture.no_deep_text:
        raise ValueError(f"{node}.{key} is {depth}, but MODEL.BACKBONE.NAME '{name}': {architecture.no_deep_text}")
    if not 1 <= depth <= layers:
        raise ValueError(
            f"{node}.{key} is {depth}, but MODEL.BACKBONE.NAME '{name}' has {layers} layers: expected 1 to {layers}."
        )
