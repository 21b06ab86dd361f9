"""TCP: the published formula, computed here with CLIP's own blocks at full length, and nothing of the text pass."""

import pytest
import torch
import torch.nn.functional as F

from kdpl.clip.loading import load_clip
from kdpl.distill import CrossEntropy
from kdpl.students import TCP

NAMES, TEMPLATE = ["pizza", "hot_dog", "ice cream cone"], "a photo of a {}, a type of food."


@pytest.fixture(scope="module")
def clip():
    return load_clip("emoji_student")


def student_of(clip, **options):
    torch.manual_seed(0)
    student = TCP(clip, {"PROMPT_DEPTH_TEXT": 3, "PREC": "fp32", **options}, NAMES, TEMPLATE)
    torch.nn.init.normal_(student.learned.meta_net.linear2.weight, std=0.1)
    return student


def published_features(clip, ctx, meta_net, names, layer):
    """Text features as the authors' code computes them: `layer` blocks, the classes' tokens for the context's, the others."""
    names = [name.replace("_", " ") for name in names]
    model, n = clip.model, len(ctx)
    with torch.no_grad():
        frozen = F.normalize(model.encode_text(clip.tokenizer([TEMPLATE.format(name) for name in names])), dim=-1)
    hidden = F.linear(frozen, meta_net["linear1.weight"], meta_net["linear1.bias"])
    tokens = F.linear(hidden * torch.sigmoid(1.702 * hidden), meta_net["linear2.weight"], meta_net["linear2.bias"])
    tokens = tokens.reshape(len(names), n, -1)
    ids = clip.tokenizer([f"{' '.join(['X'] * n)} {name}, a type of food." for name in names])
    x = model.token_embedding(ids)
    x = torch.cat([x[:, :1], ctx.expand(len(names), -1, -1), x[:, 1 + n :]], dim=1) + model.positional_embedding
    for i, block in enumerate(model.transformer.resblocks):
        if i == layer:
            x = torch.cat([x[:, :1], tokens, x[:, 1 + n :]], dim=1)
        x = block(x.transpose(0, 1)).transpose(0, 1)
    x = model.ln_final(x)[torch.arange(len(names)), ids.argmax(dim=-1)] @ model.text_projection
    return F.normalize(x, dim=-1), frozen


@pytest.mark.parametrize("words", ["", "a photo of a"])
def test_features_loss_and_gradients_are_those_of_the_published_formula(clip, words):
    student = student_of(clip, CTX_INIT=words, W=8.0)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([0, 2, 1, 1])
    loss, _ = CrossEntropy(student, NAMES)(images, labels)
    parameters = list(student.learned.parameters())
    gradients = torch.autograd.grad(loss, parameters)

    meta_net = dict(student.learned.meta_net.named_parameters())
    text, frozen = published_features(clip, student.learned.ctx, meta_net, NAMES, layer=2)
    with torch.no_grad():
        image = F.normalize(clip.model.encode_image(images), dim=-1)
    kept = 1 - F.cosine_similarity(text, frozen, dim=1, eps=1e-7).mean()
    expected = F.cross_entropy(clip.model.logit_scale.exp() * image @ text.T, labels) + 8.0 * kept
    torch.testing.assert_close(student.text_features(student.prepare(NAMES)), text, atol=1e-5, rtol=1e-5)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, parameters), strict=True):
        assert theirs.norm() > 0 and (ours - theirs).norm() < 1e-4 * theirs.norm()


def test_other_names_have_vectors_of_their_own(clip):
    """So that the prompts are used with names that were not in the training."""
    student = student_of(clip)
    with torch.no_grad():
        both = student.text_features(student.prepare([*NAMES, "yak"]))
        one = student.text_features(student.prepare(["yak"]))
    torch.testing.assert_close(both[3:], one, atol=1e-5, rtol=1e-5)


def test_more_layers_than_a_loaded_clip_has_are_refused(clip):
    with pytest.raises(ValueError, match=r"TRAINER.TCP.PROMPT_DEPTH_TEXT is 99, but .* 'emoji_student' has 4 layers"):
        student_of(clip, PROMPT_DEPTH_TEXT=99)
