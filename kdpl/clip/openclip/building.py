"""open_clip's models built without weights: parameters on the meta device, in the precision that they will have."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn

from kdpl.clip.files import WeightsError
from kdpl.clip.names.sources import ModelNameError
from kdpl.clip.openclip.recipe import Recipe
from kdpl.clip.openclip.tokenizer import hub_help, needs_transformers
from kdpl.common.messages import short_reason

_CAUSAL_MASKS = ("attn_mask", "text.attn_mask", "text_decoder.attn_mask")


def build(name: str, recipe: Recipe, half: bool = False) -> nn.Module:
    """Return the model of a recipe without its weights: with parameters on the meta device, or random ones if they cannot be.

    Args:
        half: in open_clip's own fp16, which `has_own_half` must allow.

    Raises:
        WeightsError: its text tower needs a package or a configuration that is not here.
        ModelNameError: open_clip cannot build it.
    """
    if recipe.hub_text:
        needs_transformers(name, "text tower", recipe.hub_text)
    try:
        model = _construct_empty(recipe, half)
    except Exception as error:  # of many kinds, from deep inside
        if recipe.hub_text and isinstance(error, OSError):
            raise WeightsError(hub_help(name, "text tower", recipe.hub_text, error)) from error
        raise ModelNameError(f"open_clip cannot build '{name}' ({short_reason(error)}): choose another CLIP.") from error
    return model.requires_grad_(False).eval()


def has_own_half(model: nn.Module) -> bool:
    """Whether open_clip's fp16 weights work: for image towers of timm, and for plain CLIPs.

    A layer scale, a class token, a text projection with bias or a Hugging Face text tower stay in fp32 there and meet halves.
    """
    text = getattr(model, "text", model)
    if hasattr(model.visual, "trunk"):
        return getattr(text, "cls_emb", None) is None
    plain = hasattr(text, "token_embedding") and getattr(text, "cls_emb", None) is None
    scaled = any(type(module).__name__ == "LayerScale" for module in model.modules())
    return plain and not scaled and not isinstance(text.text_projection, nn.Module)


def _construct_empty(recipe: Recipe, half: bool) -> nn.Module:
    """Return the model in the way that takes the least memory and leaves no buffer without its values."""
    for where in (_empty_parameters(), torch.device("meta")):
        # Some image towers run their stem once to learn its size, which needs one device for all; others compute buffers on
        # the device of a parameter.
        with suppress(RuntimeError):
            with where:
                model = _construct(recipe, half)
            _remake_masks(model)
            return model
    return _construct(recipe, half).eval()


def _construct(recipe: Recipe, half: bool) -> nn.Module:
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    config = copy.deepcopy(recipe.config)
    custom_text = config.pop("custom_text", False) or bool(recipe.hub_text)
    if recipe.hub_text:
        config["text_cfg"]["hf_model_pretrained"] = False
    if "timm_model_name" in config["vision_cfg"]:
        config["vision_cfg"]["timm_model_pretrained"] = False
    kind = CLIP if not custom_text else CoCa if "multimodal_cfg" in config else CustomTextCLIP
    model = kind(**config, cast_dtype=torch.float16 if half else None)  # which chooses layer norms that compute in fp32
    if half:
        _halve(model)
    return model


def _halve(model: nn.Module) -> None:
    """Give the weights the types of open_clip's own fp16."""
    from open_clip.model import convert_weights_to_lp
    from open_clip.transformer import LayerNormFp32

    if hasattr(model.visual, "trunk"):
        model.half()
        for module in model.modules():
            if isinstance(module, LayerNormFp32):
                module.float()
    else:
        convert_weights_to_lp(model, torch.float16)
    for scalar in (model.logit_scale, model.logit_bias):
        if scalar is not None:
            scalar.data = scalar.data.float()  # it multiplies features in fp32


@contextmanager
def _empty_parameters() -> Iterator[None]:
    """Put every parameter on the meta device as soon as a module registers it; buffers keep their values."""
    register = nn.Module.register_parameter

    def register_empty(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        register(module, name, value)
        if value is not None and not value.is_meta:
            module._parameters[name] = nn.Parameter(value.detach().to("meta"), requires_grad=value.requires_grad)

    nn.Module.register_parameter = register_empty
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _remake_masks(model: nn.Module) -> None:
    """Give the text towers' causal masks, which no checkpoint has, their values again.

    Raises:
        RuntimeError: another buffer that no checkpoint has is without values.
    """
    saved = model.state_dict().keys()
    for name, value in list(model.named_buffers()):
        if value.is_meta and name not in saved:
            if name not in _CAUSAL_MASKS:
                raise RuntimeError(f"its buffer {name} cannot be made without weights")
            owner = model.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("attn_mask", torch.full(value.shape, float("-inf")).triu_(1), persistent=False)
