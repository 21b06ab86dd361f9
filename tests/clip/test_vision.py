"""The prompted vision pass of OpenAI's ViT equals a plain one that computes every position of every layer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import random_clip

from kdpl.clip.blocks import UnsupportedTowerError
from kdpl.clip.vision_tower import VisionTower

VISUAL = random_clip(0, 32, 32, 4, 64, 8, 8, 10, 32, 1, 1).requires_grad_(False).visual


def plain(visual, images, prompts, deep):
    x = visual.conv1(images).flatten(2).transpose(1, 2)
    x = torch.cat([visual.class_embedding.expand(len(x), 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x, prompts.expand(len(x), -1, -1)], dim=1))
    for l, block in enumerate(visual.transformer.resblocks):
        if 0 < l <= len(deep):
            x = torch.cat([x[:, : -len(prompts)], deep[l - 1].expand(len(x), -1, -1)], dim=1)
        x = block(x.transpose(0, 1)).transpose(0, 1)
    return visual.ln_post(x[:, 0]) @ visual.proj


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 5), deeper=st.integers(0, 3), images=st.integers(1, 3))
def test_prompted_features_and_gradients_equal_the_plain_pass(n, deeper, images):
    tower = VisionTower(VISUAL)
    generator = torch.Generator().manual_seed(n)
    make = lambda: torch.randn(n, tower.width, generator=generator).mul_(0.2).requires_grad_()  # noqa: E731
    prompts, deep = make(), [make() for _ in range(min(deeper, tower.depth - 1))]
    x = torch.randn(images, 3, 32, 32, generator=generator)
    ours, expected = tower(x, prompts, deep), plain(VISUAL, x, prompts, deep)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(ours.shape, generator=generator)
    for a, b in zip(
        torch.autograd.grad((ours * weights).sum(), [prompts, *deep]),
        torch.autograd.grad((expected * weights).sum(), [prompts, *deep]),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, b.abs().max().item()), rtol=1e-5)


def test_without_prompts_it_is_the_models_own_pass():
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(VisionTower(VISUAL)(x), VISUAL(x), atol=1e-5, rtol=1e-5)


def test_a_resnet_is_refused_with_the_way_out():
    resnet = random_clip(0, 32, 32, (1, 1, 1, 1), 8, None, 8, 10, 32, 1, 1).visual
    with pytest.raises(UnsupportedTowerError, match="CoOp and CoCoOp run on any CLIP"):
        VisionTower(resnet)
