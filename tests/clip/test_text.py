"""The text pass gives what the full-length tower gives, features and gradients, for every kind of prompt."""

from contextlib import contextmanager

import open_clip
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import random_clip

from kdpl.clip import prompt_layout
from kdpl.clip.preprocessing import EOT, SOT
from kdpl.clip.prompt_layout import PromptLayout, slot
from kdpl.clip.text_tower import TextTower
from kdpl.text.prompts import context_prompts
from kdpl.text.templates import template_for

CONTEXT = 77
NAMES = st.lists(
    st.lists(st.integers(1, 900), min_size=1, max_size=12), min_size=1, max_size=7
)  # token ids of class names, of very different lengths


def openai_model(width: int = 64, heads: int = 2, depth: int = 3):
    return random_clip(0, 32, 32, 1, 64, 16, CONTEXT, 1000, width, heads, depth)


def open_clip_model(width: int = 48, heads: int = 3, depth: int = 3):
    torch.manual_seed(1)
    text = {"context_length": CONTEXT, "vocab_size": 1000, "width": width, "heads": heads, "layers": depth}
    vision = {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16}
    return open_clip.model.CLIP(40, vision, text).eval()


MODELS = {"openai": openai_model(), "openai_wide": openai_model(128, 8, 2), "open_clip": open_clip_model()}
for _model in MODELS.values():
    _model.requires_grad_(False)


def full_length(model, prompts, ctx, deep=()):
    """Features of 77-token prompts by the model's own blocks: what every published implementation computes."""
    deep = deep if isinstance(deep, dict) else dict(enumerate(deep, start=1))
    ids = torch.zeros(len(prompts), CONTEXT, dtype=torch.long)
    for i, prompt in enumerate(prompts):
        ids[i, : len(prompt)] = torch.tensor([max(e, 0) for e in prompt])
    x = model.token_embedding(ids)
    rows = []
    for i, prompt in enumerate(prompts):
        own = None if ctx is None else (ctx[i] if ctx.dim() == 3 else ctx)
        rows.append(torch.stack([own[-1 - e] if e < 0 else x[i, j] for j, e in enumerate(prompt)]))
    x = torch.stack([torch.cat([row, x[i, len(row) :]]) for i, row in enumerate(rows)]) + model.positional_embedding
    is_openai = not hasattr(model, "text_pool_type")
    for l, block in enumerate(model.transformer.resblocks):
        if l in deep:
            x = torch.cat([x[:, :1], deep[l].expand(len(x), -1, -1), x[:, 1 + deep[l].shape[-2] :]], dim=1)
        x = block(x.transpose(0, 1)).transpose(0, 1) if is_openai else block(x, attn_mask=model.attn_mask)
    x = model.ln_final(x)[torch.arange(len(prompts)), torch.tensor([len(p) - 1 for p in prompts])]
    return x @ model.text_projection


def assert_equal(features, expected, parameters):
    """Equal to 1e-5, and so are the gradients of a loss that weighs every entry differently."""
    weights = torch.randn(expected.shape, generator=torch.Generator().manual_seed(5))
    ours = torch.autograd.grad((features * weights).sum(), parameters, retain_graph=True)
    theirs = torch.autograd.grad((expected * weights).sum(), parameters)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=1e-5)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5 * max(1.0, b.abs().max().item()), rtol=1e-5)


def learned(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul_(0.1).requires_grad_()


@contextmanager
def attention(way):
    """Lay prompts out as on a CPU, or as on a card."""
    with pytest.MonkeyPatch.context() as patch:
        if way == "card":
            patch.setattr(prompt_layout, "on_cpu", lambda rows: False)
        yield


WAYS = st.sampled_from(["cpu", "card"])


def prompt_of(name, n_ctx, position="end"):
    slots, half = [slot(i) for i in range(n_ctx)], n_ctx // 2
    middle = {"end": [*slots, *name], "middle": [*slots[:half], *name, *slots[half:]], "front": [*name, *slots]}[position]
    return [998, *middle, 269, 999]


@settings(max_examples=25, deadline=None)
@given(names=NAMES, model=st.sampled_from(sorted(MODELS)), way=WAYS)
def test_plain_sentences_equal_encode_text(names, model, way):
    model = MODELS[model]
    prompts = [[998, 5, 6, *name, 999] for name in names]
    ids = torch.zeros(len(prompts), CONTEXT, dtype=torch.long)
    for row, prompt in zip(ids, prompts, strict=True):
        row[: len(prompt)] = torch.tensor(prompt)
    tower = TextTower(model)
    with attention(way):
        torch.testing.assert_close(tower(PromptLayout(tower, prompts)), model.encode_text(ids), atol=1e-5, rtol=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    names=NAMES,
    model=st.sampled_from(sorted(MODELS)),
    n_ctx=st.integers(1, 6),
    position=st.sampled_from(["end", "middle", "front"]),
    class_specific=st.booleans(),
    way=WAYS,
)
@example(names=[[1], [2, 3], [4, 5, 6]], model="openai", n_ctx=2, position="end", class_specific=False, way="card")
def test_learned_context_equals_the_full_length_pass(names, model, n_ctx, position, class_specific, way):
    tower = TextTower(MODELS[model])
    prompts = [prompt_of(name, n_ctx, position) for name in names]
    ctx = learned(*([len(names)] if class_specific else []), n_ctx, tower.width)
    with attention(way):
        features = tower(PromptLayout(tower, prompts, class_specific), ctx)
    assert_equal(features, full_length(MODELS[model], prompts, ctx), [ctx])


@settings(max_examples=30, deadline=None)
@given(
    names=NAMES,
    model=st.sampled_from(sorted(MODELS)),
    n_ctx=st.integers(1, 4),
    layers=st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 4), st.booleans()), max_size=2, unique_by=lambda layer: layer[0]
    ),
    class_specific=st.booleans(),
    max_rows=st.sampled_from([0, 0, 25]),
    way=WAYS,
)
def test_prompts_in_any_layer_equal_the_full_length_pass(names, model, n_ctx, layers, class_specific, max_rows, way):
    """At the input and at later layers, the same for all names or for each its own, in parts or not."""
    tower = TextTower(MODELS[model])
    tower.max_rows = max_rows

    def vectors(layer, n, own):
        return learned(*[len(names)] * own, min(n, n_ctx), tower.width, seed=layer)

    deep = {layer: vectors(layer, n, own) for layer, n, own in layers if layer < tower.depth}
    prompts = [prompt_of(name, n_ctx) for name in names]
    ctx = vectors(0, n_ctx, class_specific)
    with attention(way):
        features = tower(PromptLayout(tower, prompts, class_specific), ctx, deep)
    assert_equal(features, full_length(MODELS[model], prompts, ctx, deep), [ctx, *deep.values()])


@pytest.mark.parametrize(
    ("ctx", "deep", "message"),
    [
        (learned(3, 64), {}, r"ctx has \(3,\) vectors: the prompts have 2 context slots"),
        (learned(2, 64), [learned(2, 64)] * 3, r"Prompts \(2, 64\) for layer 3 do not fit: expected a layer from 1 to 2"),
        (learned(2, 64), {0: learned(2, 64)}, r"Prompts \(2, 64\) for layer 0"),
        (learned(2, 64), {1: learned(3, 64)}, r"Prompts \(3, 64\) for layer 1 .*\(n, 64\) for all or \(2, n, 64\) for each"),
        (learned(2, 64), {2: learned(3, 2, 64)}, r"Prompts \(3, 2, 64\) for layer 2"),
    ],
)
def test_vectors_of_a_wrong_shape_or_layer_are_refused(ctx, deep, message):
    tower = TextTower(MODELS["openai"])
    with pytest.raises(ValueError, match=message):
        tower(PromptLayout(tower, [prompt_of([7], 2), prompt_of([8], 2)]), ctx, deep)
    own = PromptLayout(tower, [prompt_of([7], 2), prompt_of([8], 2)], class_specific=True)
    with pytest.raises(ValueError, match=r"ctx has \(3, 2\) vectors: the prompts have 2 context slots for each of 2 prompts"):
        tower(own, learned(3, 2, 64))
    with pytest.raises(ValueError, match="A prompt of 80 tokens is longer than the text tower's 77"):
        PromptLayout(tower, [prompt_of([5] * 73, 4)])


def test_a_prefix_stays_shared_up_to_the_layer_where_prompts_differ():
    tower = TextTower(MODELS["openai"])
    layout = PromptLayout(tower, [prompt_of([7, 8], 4), prompt_of([9], 4)])
    rows = []
    for block in tower.blocks:
        block.qkv, block.q_kv = _noting(block.qkv, rows), _noting(block.q_kv, rows)
    tower(layout, learned(4, 64), {2: learned(2, 4, 64)})
    assert rows == [12, 12, 1 + 2 * 4 + 4 + 3]


def _noting(call, rows):
    def noted(x, *args):
        rows.append(x.shape[1])
        return call(x, *args)

    return noted


def test_prompts_read_as_the_published_ones():
    a, b = map(list, context_prompts(["tabby_cat", "dog"], 4, "a photo of a"))
    assert a[:5] == [SOT, *(slot(i) for i in range(4))] and a[-1] == EOT
    assert len(a) == 1 + 4 + 3 + 1 and len(b) == 1 + 4 + 2 + 1
    front = list(context_prompts(["tabby cat"], 4, "a photo of a", "front")[0])
    assert front == [SOT, *a[5:7], *a[1:5], *a[7:]]
    middle = list(context_prompts(["tabby cat"], 4, "", "middle")[0])
    assert middle == [SOT, *a[1:3], *a[5:7], *a[3:5], *a[7:]]


@pytest.mark.parametrize(
    ("name", "message"), [("_", "is empty: give every class a name"), ("cat <|endoftext|> dog", "start or end token")]
)
def test_a_name_that_no_prompt_can_hold_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        context_prompts([name], 4)


def test_each_data_set_has_its_published_sentence():
    kinds = {"OxfordPets": "pet", "OxfordFlowers": "flower", "FGVCAircraft": "aircraft"}
    sentences = {
        **{name: f"a photo of a {{}}, a type of {kind}." for name, kind in kinds.items()},
        "DescribableTextures": "{} texture.",
        "EuroSAT": "a centered satellite photo of {}.",
        "Food101": "a photo of {}, a type of food.",
        "UCF101": "a photo of a person doing {}.",
        **dict.fromkeys(("ImageNet", "ImageNetV2", "Caltech101", "StanfordCars", "SUN397"), "a photo of a {}."),
    }
    assert {name: template_for(name) for name in sentences} == sentences
    assert template_for("OxfordPets", "an icon of a {}.") == "an icon of a {}."
