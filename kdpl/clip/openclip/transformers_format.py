"""CLIP in the format of Hugging Face's transformers (`CLIPModel.save_pretrained`): as a recipe of open_clip, and its tensors.

The same model under other names: its features are those of transformers to rounding, which tests hold.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.clip.names.folders import TRANSFORMERS_CONFIG
from kdpl.clip.names.sources import ModelNameError
from kdpl.common.messages import shorten
from kdpl.common.safe_text import UnsafeTextError, read_json

_TOWER = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}  # what CLIPConfig has where a file is silent
_TEXT = {
    **_TOWER, "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "eos_token_id": 49407,
}  # fmt: skip
_VISION = {
    **_TOWER, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_channels": 3, "image_size": 224, "patch_size": 32,
}  # fmt: skip
_PROCESSOR = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": None, "image_std": None,
}  # fmt: skip
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_ACTIVATIONS = ("quick_gelu", "gelu")
_ELSEWHERE = ("siglip", "siglip2")  # open_clip has the same weights


def read_transformers(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and preprocessing of a folder of transformers, as open_clip has them.

    Raises:
        ModelNameError: it is no CLIP, or is one that would have other features here; the message says why.
    """
    config = _read(name, folder / TRANSFORMERS_CONFIG)
    kind = config.get("model_type")
    if kind in _ELSEWHERE:
        raise ModelNameError(
            f"'{name}' is a '{kind}' in the format of transformers, of which only CLIP is read: open_clip has these weights "
            f"under other names, which kdpl models {kind} lists; take that of the same size and resolution."
        )
    if kind != "clip":
        raise ModelNameError(f"'{name}' is a {shorten(kind)} of transformers, of whose formats only CLIP ('clip') is read.")
    text = {**_TEXT, **_part(config, "text_config")}
    vision = {**_VISION, **_part(config, "vision_config")}
    for part, values, defaults in (("text_config", text, _TEXT), ("vision_config", vision, _VISION)):
        if fault := _fault(values, defaults, text["hidden_act"]):
            raise ModelNameError(f"'{name}': {fault} in its {part}, which is not read.")
    if text["vocab_size"] != _TEXT["vocab_size"] or text["eos_token_id"] not in (2, _TEXT["eos_token_id"]):
        raise ModelNameError(f"'{name}' has another vocabulary than the 49,408 tokens of CLIP's byte-pair encoding.")
    if not _is_clips(folder):
        raise ModelNameError(f"'{name}' has another tokenizer than CLIP's byte-pair encoding: its vocabulary differs.")
    embed_dim = config.get("projection_dim", 512)
    model = {
        "embed_dim": embed_dim,
        "quick_gelu": text["hidden_act"] == "quick_gelu",
        "vision_cfg": {
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            **_sizes(vision),
        },
        "text_cfg": {
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
            "heads": text["num_attention_heads"],
            **_sizes(text),
        },
    }
    return model, _preprocess(name, folder, vision["image_size"])


def _fault(values: Mapping[str, Any], defaults: Mapping[str, Any], activation: object) -> str:
    """Return what of a tower cannot be built here; empty if nothing is."""
    for key, default in defaults.items():
        if type(values[key]) is not type(default) or (isinstance(default, int) and not 1 <= values[key] <= 2**20):
            return f"'{key}' is {shorten(values[key])}, expected a value such as {default!r},"
    if values["hidden_act"] not in _ACTIVATIONS or values["hidden_act"] != activation:
        return f"'hidden_act' is {shorten(values['hidden_act'])}, expected {' or '.join(_ACTIVATIONS)} in both towers,"
    if values["layer_norm_eps"] != _TOWER["layer_norm_eps"]:
        return f"'layer_norm_eps' is {values['layer_norm_eps']}, expected {_TOWER['layer_norm_eps']},"
    if values["hidden_size"] % values["num_attention_heads"]:
        return f"{values['num_attention_heads']} heads do not divide the width {values['hidden_size']}"
    return "" if values.get("num_channels", 3) == 3 else f"'num_channels' is {values['num_channels']}, expected 3,"


def _sizes(tower: Mapping[str, Any]) -> dict[str, Any]:
    width = tower["hidden_size"]
    return {"layers": tower["num_hidden_layers"], "width": width, "mlp_ratio": tower["intermediate_size"] / width}


def _read(name: str, path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, UnsafeTextError) as error:
        raise ModelNameError(f"'{name}': {error}") from None
    if not isinstance(content, dict):
        raise ModelNameError(f"'{name}': '{path}' holds {shorten(content)}, expected an object.")
    return content


def _part(config: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return the part of a configuration; older files have a second one, whose values count."""
    parts = [config.get(part) or {} for part in (key, f"{key}_dict")]
    return {k: v for part in parts if isinstance(part, dict) for k, v in part.items()}


def _preprocess(name: str, folder: Path, side: int) -> dict[str, Any]:
    """Return how images are prepared, as open_clip says it; without a processor, as that of transformers does by default."""
    given: dict[str, Any] = {}
    if (folder / "preprocessor_config.json").is_file():
        given = _read(name, folder / "preprocessor_config.json")
    elif (folder / "processor_config.json").is_file():
        given = _read(name, folder / "processor_config.json").get("image_processor") or {}
    else:
        print(
            f"'{name}' has no preprocessor_config.json: its images are prepared as CLIP's are by default, with OpenAI's mean "
            "and standard deviation"
        )
        given = {"size": {"shortest_edge": side}, "crop_size": side}
    p = {**_PROCESSOR, **given}
    size, crop = p["size"], _square(p["crop_size"])
    shortest = size if isinstance(size, int) else size.get("shortest_edge") if isinstance(size, dict) else None
    steps = p["do_resize"] is p["do_rescale"] is p["do_normalize"] is True and abs(p["rescale_factor"] * 255 - 1) < 1e-6
    if steps and shortest == side and p["do_center_crop"] is True and crop == side:
        mode = "shortest"
    elif steps and _square(size) == side and (p["do_center_crop"] is not True or crop == side):
        mode = "squash"
    else:
        raise ModelNameError(
            f"'{name}' prepares images in another way than resizing to {side} pixels, the centre or the whole, and normalising "
            f"(size {shorten(size)}, crop {shorten(p['crop_size'])}): such a CLIP is not read."
        )
    if p["resample"] not in _INTERPOLATIONS:
        raise ModelNameError(f"'{name}' resizes images by Pillow's filter {shorten(p['resample'])}, expected 0, 2 or 3.")
    found = {"size": side, "interpolation": _INTERPOLATIONS[p["resample"]], "resize_mode": mode}
    return {**found, "mean": p["image_mean"], "std": p["image_std"]}


def _square(size: object) -> object:
    if isinstance(size, dict):
        return size.get("height") if size.get("height") == size.get("width") else None
    return size


def _is_clips(folder: Path) -> bool:
    """Whether the vocabulary in a folder is that of CLIP's own tokenizer; without one there is nothing to compare."""
    try:
        if (folder / "vocab.json").is_file():
            vocabulary = read_json(folder / "vocab.json")
        elif (folder / "tokenizer.json").is_file():
            vocabulary = read_json(folder / "tokenizer.json")["model"]["vocab"]
        else:
            return True
        return {token: i for token, i in vocabulary.items() if i < 49406} == _clips_own()
    except (OSError, UnsafeTextError, KeyError, TypeError, AttributeError):
        return False


@lru_cache(maxsize=1)
def _clips_own() -> dict[str, int]:
    from open_clip.tokenizer import SimpleTokenizer

    return {token: i for token, i in SimpleTokenizer().encoder.items() if i < 49406}


_NAMES = (  # of transformers, and of open_clip
    (r"^text_model\.embeddings\.token_embedding\.weight$", "token_embedding.weight"),
    (r"^text_model\.embeddings\.position_embedding\.weight$", "positional_embedding"),
    (r"^text_model\.final_layer_norm\.", "ln_final."),
    (r"^text_model\.encoder\.layers\.", "transformer.resblocks."),
    (r"^vision_model\.embeddings\.class_embedding$", "visual.class_embedding"),
    (r"^vision_model\.embeddings\.patch_embedding\.weight$", "visual.conv1.weight"),
    (r"^vision_model\.embeddings\.position_embedding\.weight$", "visual.positional_embedding"),
    (r"^vision_model\.pre_layrnorm\.", "visual.ln_pre."),
    (r"^vision_model\.post_layernorm\.", "visual.ln_post."),
    (r"^vision_model\.encoder\.layers\.", "visual.transformer.resblocks."),
    (r"\.layer_norm(\d)\.", r".ln_\1."),
    (r"\.mlp\.fc1\.", ".mlp.c_fc."),
    (r"\.mlp\.fc2\.", ".mlp.c_proj."),
    (r"\.self_attn\.out_proj\.", ".attn.out_proj."),
)
_QKV = re.compile(r"\.self_attn\.([qkv])_proj\.(weight|bias)$")


def is_transformers(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has the names of transformers."""
    return any(key.startswith(("text_model.", "vision_model.")) for key in state)


def from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors of a CLIPModel under open_clip's names; the given dict is emptied, so that no second copy stays.

    Raises:
        KeyError: a query, key or value has not its two companions.
    """
    made: dict[str, Tensor] = {}
    while state:
        key = next(iter(state))
        if match := _QKV.search(key):
            parts = [state.pop(f"{key[: match.start()]}.self_attn.{which}_proj.{match[2]}") for which in "qkv"]
            key, value = f"{key[: match.start()]}.attn.in_proj_{match[2]}", torch.cat(parts)
        else:
            value = state.pop(key)
        if key.endswith("embeddings.position_ids"):  # of older transformers
            continue
        if key in ("text_projection.weight", "visual_projection.weight"):
            key, value = {"text": "text_projection", "visual": "visual.proj"}[key.split("_")[0]], value.T.contiguous()
        for theirs, ours in _NAMES:
            key = re.sub(theirs, ours, key)
        made[key] = value
    return made
