"""Prompts in towers of every kind give what open_clip's own forward passes give with the same vectors put in by hooks."""

import importlib.util
from functools import cache

import open_clip
import pytest
import torch
from models.narrow import WIDTH, narrow, side
from models.reference import prompted_image, prompted_text
from support import mostly_slow
from torch import nn

from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import BytePairs, Preprocessing
from kdpl.clip.prompt_layout import slot

SOT, EOT, ORDINARY, LENGTH = 998, 999, 5, 24
NAMES = [[7, 8, 9], [11], [12, 13]]
VIT = {"image_size": 32, "layers": 3, "width": 64, "patch_size": 8, "head_width": 32}
TEXT = {"context_length": LENGTH, "vocab_size": 1000, "width": 64, "heads": 2, "layers": 3}
DENSE = {"no_causal_mask": True}
TEXTS = {
    "causal": {},
    "causal-eos": {"pool_type": "eos", "eos_id": EOT},
    "dense": DENSE,
    "dense-last": {**DENSE, "pool_type": "last", "proj_bias": True},
    "dense-pad-mask": {**DENSE, "use_pad_mask": True},
    "class-token": {"embed_cls": True},
    "class-token-dense": {**DENSE, "embed_cls": True, "correct_cls_mask": True},
}
IMAGES = {
    "ViT": VIT,
    "ViT-layer-scale": {**VIT, "ls_init_value": 0.3},
    "CLIPA": {**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True},
    "CoCa": {**VIT, "attentional_pool": True, "attn_pooler_heads": 2},
    "SigLIP": {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map", "timm_proj": "none"},
    "EVA01": {"timm_model_name": "eva_giant_patch14_224", "timm_pool": "token", "timm_proj": None},
    "EVA02": {"timm_model_name": "eva02_base_patch16_clip_224", "timm_pool": "token", "timm_proj": None},
    "PE-Core": {"timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None},
    "ViTamin": {"timm_model_name": "vitamin_small_224", "timm_pool": "", "timm_proj": "linear"},
    "gap": {"timm_model_name": "vit_medium_patch16_gap_256", "timm_pool": "", "timm_proj": "linear"},
    "MobileCLIP-B": {"timm_model_name": "vit_base_mci_224", "timm_pool": "token", "timm_proj": None},
}


@cache
def small_clip(text: str = "causal", image: str = "ViT") -> Clip:
    """Return a small CLIP of open_clip with towers of these kinds, every weight of which shows."""
    torch.manual_seed(3)
    vision, size = IMAGES[image], 32
    if "timm_model_name" in vision:
        size = side(vision["timm_model_name"])
        vision = {**vision, "timm_model_name": narrow(vision["timm_model_name"]), "image_size": size}
    options = {**TEXT, **TEXTS[text]}
    masks = {key: options.pop(key) for key in ("use_pad_mask", "correct_cls_mask") if key in options}  # no configuration has
    model = open_clip.model.CustomTextCLIP(WIDTH, vision, options)
    vars(model.text).update(masks)
    for value in model.parameters():
        nn.init.normal_(value, std=0.1 if value.dim() < 2 or len(value) == 1 else value[0].numel() ** -0.5)
    return Clip(model.eval().requires_grad_(False), f"{text}, {image}", Preprocessing((size, size)), BytePairs(LENGTH))


def learned(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul_(0.5).requires_grad_()


def prompts_of(n: int, position: str = "end") -> list[list[int]]:
    slots, half = [slot(i) for i in range(n)], {"end": n, "middle": n // 2, "front": 0}[position]
    return [[SOT, *slots[:half], *name, *slots[half:], EOT] for name in NAMES]


def assert_equal(ours: torch.Tensor, theirs: torch.Tensor, vectors: list[torch.Tensor]) -> None:
    """Features equal to 1e-5 of their length, and the gradients of a loss that weighs every entry differently."""
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(5))
    gradients = [torch.autograd.grad((features * weights).sum(), vectors) for features in (ours, theirs)]
    for a, b in ((ours, theirs), *zip(*gradients, strict=True)):
        assert (a - b).norm() < 1e-5 * b.norm() and b.norm() > 1e-4, float((a - b).norm() / b.norm())


@pytest.mark.parametrize("kind", TEXTS)
def test_prompts_of_a_text_tower_equal_the_librarys_own_pass(kind):
    clip = small_clip(kind)
    width = clip.text.width
    reference = {"length": LENGTH, "pad": 0, "ordinary": ORDINARY}
    for deeper in range(clip.text.depth):
        prompts = prompts_of(2)
        ctx, *deep = vectors = [learned(2, width, seed=layer) for layer in range(deeper + 1)]
        ours = clip.text(clip.layout(prompts), ctx, deep)
        assert_equal(ours, prompted_text(clip.model, prompts, ctx, deep, **reference), vectors)
    ctx, own = vectors = [learned(2, width), learned(len(NAMES), 2, width, seed=2)]  # for each name its own, at layer 2 alone
    ours = clip.text(clip.layout(prompts_of(2)), ctx, {2: own})
    assert_equal(ours, prompted_text(clip.model, prompts_of(2), ctx, {2: own}, **reference), vectors)
    for position, own in (("middle", False), ("front", False), ("middle", True)):
        prompts, ctx = prompts_of(3, position), learned(*[len(NAMES)] * own, 3, width)
        assert_equal(
            clip.text(clip.layout(prompts, class_specific=own), ctx),
            prompted_text(clip.model, prompts, ctx, (), **reference),
            [ctx],
        )
    ctx = learned(2, 2, width)  # one for each of two images
    theirs = torch.stack([prompted_text(clip.model, prompts_of(2), own, (), **reference) for own in ctx])
    assert_equal(clip.text(clip.layout(prompts_of(2)), ctx), theirs, [ctx])


@pytest.mark.parametrize("kind", ["causal", "dense"])
@pytest.mark.parametrize("position", ["middle", "front"])
def test_deep_prompts_of_slots_at_different_places_are_refused(kind, position):
    clip = small_clip(kind)
    width = clip.text.width
    with pytest.raises(ValueError, match=r"at most the [01] slots at the same places in all prompts"):
        clip.text(clip.layout(prompts_of(2, position)), learned(2, width), [learned(2, width)])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["xlm-roberta", "mt5", "nllb"])
def test_prompts_of_a_text_tower_of_the_hub_equal_its_own_pass(kind):
    if importlib.util.find_spec("transformers") is None:
        pytest.skip("needs transformers")
    import transformers
    from open_clip.hf_model import HFTextEncoder

    small = {"vocab_size": 1000, "pad_token_id": 1}
    config = {
        "xlm-roberta": lambda: transformers.XLMRobertaConfig(
            **small, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128
        ),
        "mt5": lambda: transformers.MT5Config(
            vocab_size=1000, pad_token_id=0, d_model=64, d_kv=32, d_ff=128, num_layers=2, num_heads=2
        ),
        "nllb": lambda: transformers.M2M100Config(
            **small, d_model=64, encoder_layers=2, decoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=128
        ),
    }[kind]()
    torch.manual_seed(4)
    text = HFTextEncoder("none", WIDTH, config, "cls_pooler" if kind == "nllb" else "mean_pooler", "mlp")
    if config.is_encoder_decoder:
        text.transformer = text.transformer.encoder
    model = open_clip.model.CustomTextCLIP(WIDTH, VIT, TEXT)
    model.text = text
    clip = Clip(model.eval().requires_grad_(False), kind, Preprocessing((32, 32)), BytePairs(LENGTH))
    prompts, ctx, pad = prompts_of(3), learned(3, 64), config.pad_token_id
    ours = clip.text(clip.text.layout(prompts, pad), ctx)
    assert_equal(ours, prompted_text(model, prompts, ctx, (), LENGTH, pad, ORDINARY), [ctx])


@pytest.mark.parametrize("kind", mostly_slow(IMAGES, *(kind for kind in IMAGES if kind != "MobileCLIP-B")))
def test_prompts_of_an_image_tower_equal_the_librarys_own_pass(kind):
    clip = small_clip(image=kind)
    images = torch.randn(2, 3, clip.resolution, clip.resolution, generator=torch.Generator().manual_seed(1))
    for deeper in range(clip.vision.depth):
        first, *deep = vectors = [learned(2, clip.vision.width, seed=layer) for layer in range(deeper + 1)]
        assert_equal(clip.vision(images, first, deep), prompted_image(clip.model, images, first, deep), vectors)
