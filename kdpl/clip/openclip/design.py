"""What makes a CLIP beside its weights: activations, heads, preparation of images, tokenizer.

It is read off the model that was built, so it is the same whatever built it: OpenAI's package or open_clip, in any precision.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from kdpl.clip.model import Clip

TOWERS = ("image", "text")
_DESIGNS: "WeakKeyDictionary[Clip, dict[str, str]]" = WeakKeyDictionary()
_POINTS = torch.linspace(-4, 4, 33)
_ACTIVATIONS = {
    "QuickGELU": lambda x: x * torch.sigmoid(1.702 * x),
    "GELU": F.gelu,
    "GELU by tanh": lambda x: F.gelu(x, approximate="tanh"),
    "ReLU": F.relu,
    "SiLU": F.silu,
}
# What open_clip's configurations say beside: weights, their shapes, the modules or the tokenizer show these.
_SHOWN_ELSEWHERE = frozenset(
    (
        "layers", "width", "heads", "head_width", "mlp_ratio", "patch_size", "image_size", "context_length", "vocab_size",
        "act_kwargs", "norm_kwargs", "attn_pooler_heads", "attn_pooler_queries", "ls_init_value", "embed_cls", "proj_bias",
        "hf_model_name", "hf_model_pretrained", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode",
        "timm_model_pretrained", "timm_drop", "timm_drop_path", "patch_dropout",
    )
)  # fmt: skip


def design_of(clip: "Clip") -> dict[str, str]:
    """Return what changes a CLIP's features and is not in its weights, in words, by name; computed once.

    Names that begin with a tower's are of that tower alone.
    """
    if clip not in _DESIGNS:
        _DESIGNS[clip] = _read_off(clip)
    return dict(_DESIGNS[clip])


def identity_of(clip: "Clip") -> str:
    """Return a digest of a CLIP's weights and design: what is compared wherever two could be mixed up."""
    return hashlib.sha256(f"{clip.weights_digest} {json.dumps(design_of(clip), sort_keys=True)}".encode()).hexdigest()


def _read_off(clip: "Clip") -> dict[str, str]:
    design = {}
    for tower in TOWERS:
        modules = [module for name, module in clip.model.named_modules() if name.startswith("visual") == (tower == "image")]
        design[f"{tower} activation"] = _words(_activations(modules))
        design[f"{tower} heads"] = _words(_numbers(modules, "num_heads", "num_attention_heads"))
        design[f"{tower} epsilon"] = _words(_numbers(modules, "eps"))
        design[f"{tower} options"] = json.dumps(clip.options.get(tower) or {}, sort_keys=True, default=str)
    p = clip.preprocessing
    design["image resizing"] = f"{p.size[0]} x {p.size[1]}, {p.interpolation}, {p.resize_mode}"
    design["image mean"], design["image std"] = (_words(round(value, 6) for value in values) for values in (p.mean, p.std))
    design["text tokenizer"] = clip.tokenizer.digest[:16]
    design["text context"] = f"{clip.tokenizer.context_length}"
    return design


def design_of_tower(design: Mapping[str, str], tower: str) -> dict[str, str]:
    """Return the part of a design that the features of the "image" or the "text" tower depend on."""
    return {name: value for name, value in design.items() if name.startswith(tower)}


def options_of(config: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return, by tower, the options of an open_clip configuration that nothing else shows, without defaults."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    found = {}
    for tower, part, defaults in (("image", "vision_cfg", CLIPVisionCfg()), ("text", "text_cfg", CLIPTextCfg())):
        given = {key: value for key, value in config[part].items() if key not in _SHOWN_ELSEWHERE}
        found[tower] = {key: value for key, value in given.items() if value != getattr(defaults, key, None)}
    return found


def _activations(modules: Iterable[nn.Module]) -> set[str]:
    kinds = {}
    for module in modules:
        if not any(True for _ in module.children()) and not any(True for _ in module.parameters()):
            kinds.setdefault((type(module), module.extra_repr()), module)
    return {name for module in kinds.values() if (name := _activation(module))}


def _activation(module: nn.Module) -> str:
    """Return the name of what a module does to every number; empty if it does something else, or nothing."""
    if isinstance(module, nn.Dropout):
        return ""
    try:
        values = module(_POINTS.clone())
    except Exception:  # of many kinds: it takes something else
        return ""
    if not isinstance(values, Tensor) or values.shape != _POINTS.shape or torch.equal(values, _POINTS):
        return ""
    alike = [name for name, function in _ACTIVATIONS.items() if torch.allclose(values, function(_POINTS), atol=1e-5)]
    return alike[0] if alike else f"{type(module).__name__}({module.extra_repr()})"


def _numbers(modules: Iterable[nn.Module], *attributes: str) -> set[float]:
    found = (getattr(module, attribute, None) for module in modules for attribute in attributes)
    return {value for value in found if isinstance(value, int | float) and not isinstance(value, bool)}


def _words(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(values) if isinstance(values, set) else values))
