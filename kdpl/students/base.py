"""What every prompt learner has: a frozen CLIP, a small module of what is learned, and the way to logits.

A student is made of four pieces, and a new one overrides what differs (see docs/new_student.md):
`check` refuses a configuration before anything is loaded, `__init__` fills `self.learned`, `prepare` computes the constants of
a list of class names, and `image_features` / `text_features` turn images and names into features.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

from kdpl.clips import Architecture, Clip, similarity_logits
from kdpl.prompts import context_prompts, init_tokens
from kdpl.text import PromptLayout
from kdpl.vision import VisionTower

INIT_STD = 0.02  # of randomly initialised prompts


class Output(NamedTuple):
    """What a student gives for a batch; features are normalised."""

    logits: Tensor  # (B, C)
    image_features: Tensor  # (B, d)
    text_features: Tensor  # (C, d), or (B, C, d) where every image has its own


class Student(nn.Module):
    """A frozen CLIP with learned prompts.

    `self.learned` is the one module that is trained, registered and saved; the names of its parameters are those of the
    published checkpoints.

    Args:
        clip: the frozen CLIP.
        options: the variant's configuration node, `TRAINER.<node>`.
    """

    node: str  # the configuration node of its options
    model_name: str = "prompt_learner"  # under which the forks register and save it
    image_features_are_frozen = False  # True where nothing learned touches the vision tower
    reads_frozen_image_features = False  # True where they are needed at all: as its own, or in its regularisers
    text_depends_on_images = False  # True where every image has its own text features

    def __init__(self, clip: Clip, options: CfgNode):
        super().__init__()
        self.clip = clip
        self.options = options
        self.learned = nn.Module()

    @classmethod
    def build(cls, clip: Clip, options: CfgNode, names: Sequence[str]) -> "Student":
        """Return a new student for these class names; only class-specific prompts depend on them."""
        return cls(clip, options)

    @classmethod
    def check(cls, options: CfgNode, architecture: Architecture, name: str) -> None:
        """Raise a ValueError that names both sides if the CLIP `name` cannot take these options."""
        depths = [(k, d) for k, d in options.items() if k.startswith("PROMPT_DEPTH")]
        for key, depth in depths:
            tower = architecture.text_depth if key.endswith("TEXT") else architecture.vision_depth
            if not architecture.is_vit:
                raise ValueError(
                    f"TRAINER.{cls.node} learns visual prompts and needs a ViT, but MODEL.BACKBONE.NAME '{name}' is a ResNet "
                    "or another tower. Choose a ViT such as 'ViT-B/32', or the trainer CoOp or CoCoOp."
                )
            if key == "PROMPT_DEPTH":
                tower = min(tower, architecture.text_depth)
            if not 1 <= depth <= tower:
                raise ValueError(
                    f"TRAINER.{cls.node}.{key} is {depth}, but MODEL.BACKBONE.NAME '{name}' has {tower} layers: "
                    f"expected 1 to {tower}."
                )
        for key, count in options.items():
            if key.startswith("N_CTX") and count < 1:
                raise ValueError(f"TRAINER.{cls.node}.{key} is {count}, expected at least 1 token.")

    @property
    def logit_scale(self) -> Tensor:
        """exp(logit_scale) of the frozen CLIP."""
        return self.clip.logit_scale

    def prepare(self, names: Sequence[str]) -> Any:
        """Return the constants of a list of class names, computed once per list and passed to the other methods."""
        raise NotImplementedError

    def text_features(self, prepared: Any, image_features: Tensor | None = None) -> Tensor:
        """Return normalised text features `(C, d)`, or `(B, C, d)` where they depend on the images."""
        raise NotImplementedError

    def image_features(self, images: Tensor) -> Tensor:
        """Return normalised image features `(B, d)` of images `(B, 3, H, W)`; by default the frozen CLIP's."""
        return self.frozen_image_features(images)

    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Return the frozen CLIP's normalised image features `(B, d)` in fp32, without gradient."""
        with torch.inference_mode():
            features = F.normalize(self.clip.image_features(images).float(), dim=-1)
        return features.clone()  # of an inference tensor: it may take part in autograd

    def forward(
        self, images: Tensor | None, prepared: Any, text_features: Tensor | None = None, frozen: Tensor | None = None
    ) -> Output:
        """Return logits and features of a batch.

        Args:
            images: `(B, 3, H, W)`, normalised; None where `frozen` is given and `image_features_are_frozen`.
            prepared: what `prepare` returned for the class names.
            text_features: already computed by `text_features`, in an evaluation.
            frozen: already computed by `frozen_image_features`, `(B, d)`.
        """
        own = frozen is None or not self.image_features_are_frozen
        f = self.image_features(images) if own else frozen  # (B, d)
        g = self.text_features(prepared, f) if text_features is None else text_features
        return Output(similarity_logits(self.logit_scale, f, g), f, g)

    def regularisers(self, output: Output, frozen: Tensor | None, names: Sequence[str]) -> dict[str, Tensor]:
        """Return the variant's own terms of the loss by name, weights included; they are added to the main loss.

        Args:
            frozen: `frozen_image_features` of the batch `(B, d)`, where `reads_frozen_image_features`.
        """
        return {}

    def end_epoch(self, epoch: int, max_epoch: int) -> None:
        """Do what the variant does after each epoch, counted from 0."""

    def extra_state(self) -> dict[str, Any]:
        """Return tensors and numbers beyond the learned parameters that a resumed run needs."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned."""


class TextContext:
    """The learned context tokens of a text prompt: their initial words and the prompts that hold them.

    Args:
        clip: the frozen CLIP.
        words: CTX_INIT; empty: random initialisation.
        n_ctx: N_CTX.
        fixed_count: True where N_CTX counts (MaPLe, PromptSRC: the first N_CTX tokens of the words are learned), False
            where the words do (CoOp, CoCoOp: all of them are learned, whatever N_CTX says).
    """

    def __init__(self, clip: Clip, words: str, n_ctx: int, fixed_count: bool, position: str = "end"):
        tokens = init_tokens(words) if words else []
        if tokens and not fixed_count:
            n_ctx = len(tokens)
        if len(tokens) < n_ctx:
            words, tokens = "", []
        self.clip, self.words, self.n_ctx, self.position = clip, words, n_ctx, position
        self.tokens = tokens[:n_ctx]

    def initial(self, classes: int | None = None) -> Tensor:
        """Return the initial value in fp32, `(n_ctx, w_t)`, or `(classes, n_ctx, w_t)`: the words' embeddings or N(0, 0.02)."""
        tower = self.clip.text
        if self.tokens:
            value = tower.embed(torch.tensor(self.tokens, device=tower.device)).float()
            return value if classes is None else value.repeat(classes, 1, 1)
        shape = (self.n_ctx, tower.width) if classes is None else (classes, self.n_ctx, tower.width)
        return random_prompts(*shape)

    def layout(self, names: Sequence[str], class_specific: bool = False) -> PromptLayout:
        """Return the prompts of these class names, ready for the text pass."""
        prompts = context_prompts(names, self.n_ctx, self.words, self.position)
        for name, prompt in zip(names, prompts, strict=True):
            if len(prompt) > self.clip.text.context_length:
                raise ValueError(
                    f"The prompt of class name '{name}' has {len(prompt)} tokens, {self.n_ctx} of them context; the text tower "
                    f"takes {self.clip.text.context_length}: shorten the name, or the context (N_CTX, CTX_INIT)."
                )
        return PromptLayout(self.clip.text, prompts, class_specific)


class VisualPrompts:
    """Mixed into students that prompt the vision tower: the tower, and images to features."""

    def prompted_image_features(self, images: Tensor, prompts: Tensor, deep: Sequence[Tensor]) -> Tensor:
        """Return normalised features `(B, d)` in fp32."""
        return F.normalize(self.vision(images, prompts, deep).float(), dim=-1)

    @property
    def vision(self) -> VisionTower:
        return self.clip.vision


def normalized_text(tower_output: Tensor) -> Tensor:
    return F.normalize(tower_output.float(), dim=-1)


def random_prompts(*shape: int) -> Tensor:
    """Return new prompt vectors, N(0, 0.02)."""
    return torch.empty(shape).normal_(std=INIT_STD)


def put_parameter(module: nn.Module, name: str, value: Tensor) -> nn.Parameter:
    """Register a parameter under a dotted name, as `image_encoder.VPT`, making the modules on the way; return it."""
    *path, last = name.split(".")
    for part in path:
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    module.register_parameter(last, nn.Parameter(value))
    return getattr(module, last)
