"""CLIP in the format of Hugging Face's transformers (`CLIPModel.save_pretrained`): as open_clip has it.

The same model under other names: its features are those of transformers to rounding, which tests check.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.clip.names import TRANSFORMERS_CONFIG, ModelNameError
from kdpl.common.messages import shorten
from kdpl.common.safe_text import read_json

_TOWERS = {  # what CLIPConfig has by default
    "text_config": {
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12, "vocab_size": 49408, "hidden_size": 512,
        "intermediate_size": 2048, "num_attention_heads": 8, "max_position_embeddings": 77, "eos_token_id": 49407,
    },
    "vision_config": {
        "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "num_hidden_layers": 12, "hidden_size": 768,
        "intermediate_size": 3072, "num_attention_heads": 12, "num_channels": 3, "image_size": 224, "patch_size": 32,
    },
}  # fmt: skip
_EXPECTED = {  # with another value open_clip's model would have other features
    "hidden_act": ("quick_gelu", "gelu"), "layer_norm_eps": (1e-5,), "vocab_size": (49408,), "eos_token_id": (2, 49407),
    "num_channels": (3,),
}  # fmt: skip
_PROCESSOR = {
    "do_resize": True, "size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, "crop_size": 224,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": None, "image_std": None,
}  # fmt: skip
_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}  # by Pillow's numbers
_NAMES = {  # parts of the names of transformers' tensors, and what they are in open_clip's
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.": "ln_final.",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",
    "vision_model.post_layernorm.": "visual.ln_post.",
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    ".layer_norm": ".ln_",
    ".mlp.fc1.": ".mlp.c_fc.",
    ".mlp.fc2.": ".mlp.c_proj.",
    ".self_attn.out_proj.": ".attn.out_proj.",
    "text_projection.weight": "text_projection",
    "visual_projection.weight": "visual.proj",
}


def read_transformers(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return configuration and preprocessing of a folder of transformers, as open_clip has them.

    Raises:
        ModelNameError: it is not a CLIP, or one that would have other features here; the message says why.
        OSError, ValueError, TypeError, KeyError, AttributeError: a file is missing or damaged.
    """
    config = read_json(folder / TRANSFORMERS_CONFIG)
    if config.get("model_type") != "clip":
        raise ModelNameError(
            f"'{name}' is a {shorten(config.get('model_type'))} of transformers, of whose formats only CLIP ('clip') is read. "
            "Of siglip and siglip2 open_clip has the same weights: kdpl models siglip lists them."
        )
    text, vision = (_tower(name, config, part) for part in _TOWERS)
    if text["hidden_act"] != vision["hidden_act"]:
        raise ModelNameError(f"'{name}' has another activation ('hidden_act') in its text_config than in its vision_config.")
    model = {"embed_dim": config.get("projection_dim", 512), "quick_gelu": text["hidden_act"] == "quick_gelu"}
    for part, tower in (("text_cfg", text), ("vision_cfg", vision)):
        width = tower["hidden_size"]
        model[part] = {"layers": tower["num_hidden_layers"], "width": width, "mlp_ratio": tower["intermediate_size"] / width}
    model["text_cfg"] |= {"context_length": text["max_position_embeddings"], "heads": text["num_attention_heads"]}
    head_width = vision["hidden_size"] // vision["num_attention_heads"]
    model["vision_cfg"] |= {"image_size": vision["image_size"], "patch_size": vision["patch_size"], "head_width": head_width}
    return model, _preprocess(name, folder, vision["image_size"])


def _tower(name: str, config: Mapping[str, Any], part: str) -> dict[str, Any]:
    tower = {**_TOWERS[part], **(config.get(part) or {}), **(config.get(f"{part}_dict") or {})}  # older files have the second
    for key, expected in _EXPECTED.items():
        if key in _TOWERS[part] and tower[key] not in expected:
            raise ModelNameError(
                f"'{name}': '{key}' is {shorten(tower[key])} in its {part}, which cannot be built here: expected "
                f"{' or '.join(map(str, expected))}."
            )
    return tower


def _preprocess(name: str, folder: Path, side: int) -> dict[str, Any]:
    """Return how images are prepared, as open_clip says it; without a processor, as that of transformers does by default."""
    files = [folder / file for file in ("preprocessor_config.json", "processor_config.json") if (folder / file).is_file()]
    given = read_json(files[0]) if files else {"size": side, "crop_size": side}
    if not files:
        print(f"'{name}' has no preprocessor_config.json: its images are prepared as CLIP's are by default")
    p = {**_PROCESSOR, **given.get("image_processor", given)}
    sizes = [value if isinstance(value, dict) else {"shortest_edge": value} for value in (p["size"], p["crop_size"])]
    squash = "height" in sizes[0]
    steps = p["do_resize"] and p["do_rescale"] and p["do_normalize"] and abs(p["rescale_factor"] * 255 - 1) < 1e-6
    size, crop = ({*some.values()} == {side} for some in sizes)
    if not steps or not size or not (crop if p["do_center_crop"] else squash) or p["resample"] not in _INTERPOLATIONS:
        raise ModelNameError(
            f"'{name}' prepares images in another way than resizing to {side} pixels, the centre or the whole, and normalising "
            f"(size {shorten(p['size'])}, crop {shorten(p['crop_size'])}, Pillow's filter {shorten(p['resample'])})."
        )
    mode, interpolation = "squash" if squash else "shortest", _INTERPOLATIONS[p["resample"]]
    return {"interpolation": interpolation, "resize_mode": mode, "mean": p["image_mean"], "std": p["image_std"]}


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
        block, attention, rest = key.partition(".self_attn.")
        if attention and not rest.startswith("out_proj"):
            what = rest.split(".")[1]  # weight or bias
            value = torch.cat([state.pop(f"{block}.self_attn.{part}_proj.{what}") for part in "qkv"])
            key = f"{block}.attn.in_proj_{what}"
        else:
            value = state.pop(key)
        if key.endswith("embeddings.position_ids"):  # of older transformers
            continue
        for theirs, ours in _NAMES.items():
            key = key.replace(theirs, ours)
        made[key] = value.T.contiguous() if key in ("text_projection", "visual.proj") else value
    return made
