"""A training step the way published implementations take it, for comparison: the same numbers, with all the work done.

Every prompt is run at its full 77 tokens through the model's own blocks, every position of every layer, image by image where
each image has its own prompts; images travel as floats; nothing that a frozen tower has computed is kept.
"""

from collections.abc import Sequence
from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.clip.model import Clip
from kdpl.students import Student


def full_length_text(clip: Clip, prompts: Sequence[Sequence[int]], ctx: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
    """Return the features `(C, d)` of prompts that begin `[SOT] ctx`, with `deep` context for the layers after the first."""
    model, n = clip.model, len(ctx)
    ids = torch.zeros(len(prompts), clip.text.context_length, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor([max(e, 0) for e in prompt])
    ids = ids.to(clip.device)
    tokens = model.token_embedding(ids).to(clip.text.dtype)
    x = torch.cat([tokens[:, :1], ctx.to(tokens.dtype).expand(len(ids), -1, -1), tokens[:, 1 + n :]], dim=1)
    x = (x + model.positional_embedding.to(x.dtype)).transpose(0, 1)  # (77, C, w)
    for layer, block in enumerate(model.transformer.resblocks):
        if 0 < layer <= len(deep):
            own = deep[layer - 1].to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
            x = torch.cat([x[:1], own, x[1 + n :]])
        x = block(x)
    x = model.ln_final(x.transpose(0, 1)).to(x.dtype)
    return x[torch.arange(len(ids)), ids.argmax(1)] @ model.text_projection


def prompted_vision(clip: Clip, images: Tensor, prompts: Tensor, deep: Sequence[Tensor]) -> Tensor:
    """Return the image features `(B, d)` with learned tokens behind the patches, all positions of all layers computed."""
    visual = clip.model.visual
    x = visual.conv1(images.to(clip.dtype)).flatten(2).transpose(1, 2)
    cls = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
    x = torch.cat([cls, x], dim=1) + visual.positional_embedding.to(x.dtype)
    x = torch.cat([x, prompts.to(x.dtype).expand(len(x), -1, -1)], dim=1)
    x = visual.ln_pre(x).transpose(0, 1)  # (L, B, w)
    for layer, block in enumerate(visual.transformer.resblocks):
        if 0 < layer <= len(deep):
            own = deep[layer - 1].to(x.dtype)[:, None].expand(-1, x.shape[1], -1)
            x = torch.cat([x[: -len(own)], own])
        x = block(x)
    return visual.ln_post(x[0]) @ visual.proj


def full_image_features(clip: Clip, images: Tensor) -> Tensor:
    with torch.no_grad():
        return F.normalize(clip.model.encode_image(images.to(clip.dtype)).float(), dim=-1)


def take_the_published_way(student: Student) -> None:
    """Have a student compute its features the published way from now on."""
    clip, learned = student.clip, student.learned
    student.frozen_image_features = lambda images: full_image_features(clip, images)
    if student.node == "VPT":
        first, *deep = student.visual_prompts
        student.image_features = lambda images: normalized(prompted_vision(clip, images, first, deep))
        return

    def text_features(self: Student, prepared: object, image_features: Tensor | None = None) -> Tensor:
        prompts = prepared.prompts
        if self.node == "COOP":
            return normalized(full_length_text(clip, prompts, learned.ctx))
        if self.node == "COCOOP":  # image by image
            shifts = learned.meta_net(image_features)
            return torch.stack([normalized(full_length_text(clip, prompts, learned.ctx + shift)) for shift in shifts])
        if self.node == "MAPLE":
            learner = learned.prompt_learner
            return normalized(full_length_text(clip, prompts, learner.ctx, list(learner.compound_prompts_text)))
        ctx, *deep = self.text_prompts
        return normalized(full_length_text(clip, prompts, ctx, deep))

    student.text_features = MethodType(text_features, student)
    if student.node == "MAPLE":
        learner = learned.prompt_learner

        def image_features(images: Tensor) -> Tensor:
            pairs: Sequence[tuple[nn.Module, Tensor]] = list(
                zip(learner.compound_prompt_projections, learner.compound_prompts_text, strict=True)
            )
            return normalized(prompted_vision(clip, images, learner.proj(learner.ctx), [p(t) for p, t in pairs]))

        student.image_features = image_features
    elif student.node in ("PROMPTSRC", "IVLP"):
        first, *deep_vision = student.visual_prompts
        student.image_features = lambda images: normalized(prompted_vision(clip, images, first, deep_vision))


def normalized(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=-1)
