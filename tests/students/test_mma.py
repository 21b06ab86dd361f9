"""MMA's loss and gradients are those of its formula over the model's own blocks, and functions beside blocks fit every way of
running the towers."""

import pytest
import torch
import torch.nn.functional as F

from kdpl.clip import load_clip
from kdpl.students import MMA

NAMES = ["pizza", "hot_dog", "ice cream cone", "a rather long name of a dish"]
SCALE, FIRST = 0.5, 2  # layers from 1, as published


class Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied."""

    @staticmethod
    def forward(ctx, x, scale):
        ctx.scale = scale
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.scale, None


def published(model, learned, kind, block, layer, x):
    """A block of the paper's code: OpenAI's, and beside it down, shared and up of its normalised input."""
    attended = block.ln_1(x)
    out = x + block.attn(attended, attended, attended, need_weights=False, attn_mask=block.attn_mask)[0]
    out = out + block.mlp(block.ln_2(out))
    if layer < FIRST:
        return out
    own, shared = getattr(learned, kind)[str(layer)], learned.shared_adapter[str(layer)]
    y = own["up"](shared(own["down"](block.ln_1(Scaled.apply(x, SCALE))))) * SCALE
    return out + Scaled.apply(y, 1 / SCALE)


def logits(clip, learned, images):
    model, v = clip.model, clip.model.visual
    x = v.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([v.class_embedding.expand(len(x), 1, -1), x], dim=1) + v.positional_embedding
    x = v.ln_pre(x).transpose(0, 1)
    for layer, block in enumerate(v.transformer.resblocks, start=1):
        x = published(model, learned, "visual_adapter", block, layer, x)
    image = v.ln_post(x[0]) @ v.proj
    ids = clip.tokenizer([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    x = (model.token_embedding(ids) + model.positional_embedding).transpose(0, 1)
    for layer, block in enumerate(model.transformer.resblocks, start=1):
        x = published(model, learned, "text_adapter", block, layer, x)
    text = model.ln_final(x.transpose(0, 1))[torch.arange(len(NAMES)), ids.argmax(-1)] @ model.text_projection
    return clip.logit_scale * F.normalize(image, dim=-1) @ F.normalize(text, dim=-1).T


@pytest.mark.parametrize("max_rows", [0, 25])
def test_loss_and_gradients_of_mma_are_those_of_the_published_code(max_rows):
    torch.manual_seed(0)
    clip = load_clip("emoji_student")
    clip.text.max_rows = max_rows
    student = MMA(clip, {"PREC": "fp32", "ADAPTER_DEPTH": 3, "ADAPTER_SCALE": SCALE}, NAMES)
    for value in student.learned.parameters():
        value.data.add_(0.02 * torch.randn_like(value))
    images, labels = torch.randn(3, 3, 64, 64), torch.tensor([0, 3, 1])
    losses = [
        F.cross_entropy(student(images, student.prepare(NAMES)).logits, labels),
        F.cross_entropy(logits(clip, student.learned, images), labels),
    ]
    ours, theirs = (torch.autograd.grad(loss, list(student.learned.parameters())) for loss in losses)
    torch.testing.assert_close(*losses, atol=1e-5, rtol=0)
    for (name, _), a, b in zip(student.learned.named_parameters(), ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm() > 0, name
