"""CLIPs that open_clip builds: what belongs to a name beside the numbers, the model, and the weights put into it.

A CLIP in the format of Hugging Face's transformers (`CLIPModel.save_pretrained`) is the same model under other names: its
features are those of transformers to rounding, which tests check.
"""

import copy
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdpl.clip.model import Clip
from kdpl.clip.names import HUB_CONFIG, LOCAL, TRANSFORMERS_CONFIG, ModelNameError, Source
from kdpl.clip.preprocessing import Preprocessing, checked_preprocessing, missing_part, tokenizer_of
from kdpl.clip.weights import WeightsError, read_state_dict
from kdpl.common.messages import short_reason, shorten
from kdpl.common.safe_text import read_json

PLAIN = "ViT-B-32"  # an architecture of the class that transformers' CLIPs are of, whose sizes are replaced
WEIGHTS_FILES = (  # of a folder, and of a repository on the hub
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "model.safetensors",
    "pytorch_model.bin",
)

SHOWN = ("layers", "width", "patch_size", "image_size", "context_length", "vocab_size", "hf_tokenizer_name")
SHOWN += ("hf_model_pretrained", "timm_model_pretrained")  # of a configuration, by weights, tokenizer or preprocessing

THEIRS = ("text_model.", "vision_model.")  # how the names of transformers' tensors begin


class Recipe(NamedTuple):
    """An open_clip model without its weights."""

    base: str  # what `open_clip.create_model` calls it
    config: dict[str, Any]  # of the model, as open_clip's model_configs have it, quick_gelu included
    preprocessing: Preprocessing
    published: dict[str, Any]  # open_clip's entry of the weights to download; empty if there is none


def recipe_of(name: str, source: Source) -> Recipe:
    """Return the recipe of the CLIP `name`.

    Raises:
        ModelNameError: its configuration is none that open_clip or this package can use.
    """
    import open_clip

    try:
        published = {"hf_hub": f"{source.repository}/"} if source.repository else {}
        if source.kind == "transformers":
            base, (config, preprocess) = PLAIN, _read_transformers(name, Path(source.path))
        elif source.kind == "folder":
            content = read_json(Path(source.path, HUB_CONFIG))
            base, config, preprocess = LOCAL + source.path, content["model_cfg"], content.get("preprocess_cfg") or {}
        else:
            base, config = source.architecture, open_clip.get_model_config(source.architecture)
            preprocess = published = open_clip.get_pretrained_cfg(base, source.tag) if source.tag else {}
        config["quick_gelu"] = bool(config.get("quick_gelu") or preprocess.get("quick_gelu"))
        side = config["vision_cfg"].get("image_size", 224)
        preprocessing = checked_preprocessing({**preprocess, "size": side})  # that of the model counts, as in open_clip
        if not isinstance(config["text_cfg"], dict):
            raise TypeError("'text_cfg' is not an object")
    except ModelNameError:
        raise
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelNameError(f"'{name}' has no usable configuration of a CLIP ({short_reason(error)}).") from error
    if preprocessing.size[0] != preprocessing.size[1]:
        raise ModelNameError(f"'{name}' takes images of {preprocessing.size} pixels: expected a CLIP with square input.")
    return Recipe(base, config, preprocessing, published)


def load_open_clip(name: str, source: Source, half: bool, weights: bool = True) -> Clip:
    """Load a CLIP that open_clip knows; what can be refused without its weights is refused before they are read.

    Args:
        half: in open_clip's own fp16 if the model has it, else in fp32.
        weights: False: on the meta device, without them.
    """
    recipe = recipe_of(name, source)
    model = _build(name, recipe, half)
    tokenizer = tokenizer_of(name, recipe.config["text_cfg"], "" if source.kind == "open_clip" else source.path)
    if weights:
        _load_weights(model, find_open_clip(name, source) or _download(name, source, recipe.published), source)
    else:
        model = model.to("meta")
    return Clip(model, name, recipe.preprocessing, tokenizer, config=_own_options(recipe.config))


def _own_options(config: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration says beyond open_clip's defaults, weights, tokenizer and preprocessing."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    options: dict[str, Any] = {"quick_gelu": config["quick_gelu"]}
    for part, defaults in (("vision_cfg", CLIPVisionCfg()), ("text_cfg", CLIPTextCfg())):
        own = {key: value for key, value in config[part].items() if value != getattr(defaults, key, None)}
        options[part] = {key: value for key, value in own.items() if key not in SHOWN}
    return options


def _build(name: str, recipe: Recipe, half: bool) -> nn.Module:
    """Return the model of a recipe with parameters on the meta device, or with random ones if they cannot be there.

    Raises:
        WeightsError: its text tower needs a package or a configuration that is not here.
        ModelNameError: open_clip cannot build it.
    """
    import open_clip

    sizes = recipe.config if recipe.base == PLAIN else {}
    hub_text = recipe.config["text_cfg"].get("hf_model_name") or ""

    def create() -> nn.Module:
        return open_clip.create_model(
            recipe.base, load_weights=False, precision="fp16" if half and _has_own_half(recipe.config) else "fp32",
            device=None, pretrained_text=False, force_quick_gelu=recipe.config["quick_gelu"], **copy.deepcopy(sizes),
        )  # fmt: skip

    logging.disable(logging.WARNING)  # that the model has no weights yet
    try:
        try:
            with _empty_parameters():
                model = create()
        except RuntimeError:  # some image towers run their stem once to learn its size, which needs values
            model = create()
        if any(value.is_meta for name, value in model.named_buffers()):  # computed on the device of a parameter
            model = create()
    except Exception as error:  # of many kinds, from deep inside
        if hub_text and (isinstance(error, OSError) or find_spec("transformers") is None):
            raise missing_part(name, "text tower", hub_text, error) from error
        raise ModelNameError(f"open_clip cannot build '{name}' ({short_reason(error)}): choose another CLIP.") from error
    finally:
        logging.disable(logging.NOTSET)
    for scalar in (model.logit_scale, model.logit_bias):
        if scalar is not None:
            scalar.data = scalar.data.float()  # it multiplies features in fp32
    return model.requires_grad_(False).eval()


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


def _has_own_half(config: dict[str, Any]) -> bool:
    """Whether open_clip's fp16 weights work: for image towers of timm, and for plain CLIPs.

    A layer scale, a class token, a text projection with bias or a Hugging Face text tower stay in fp32 there and meet halves.
    """
    vision, text = config["vision_cfg"], config["text_cfg"]
    if "timm_model_name" in vision:
        return not text.get("embed_cls")
    scaled = any(part.get("ls_init_value") is not None for part in (vision, text))
    return not (scaled or any(text.get(key) for key in ("embed_cls", "proj_bias", "hf_model_name")))


def find_open_clip(name: str, source: Source) -> Path | None:
    """Return the file of a CLIP's weights if it is here; nothing is downloaded."""
    if source.kind == "open_clip" and source.path:
        return Path(source.path)
    if source.path and not source.repository:
        here = [Path(source.path, file) for file in WEIGHTS_FILES if Path(source.path, file).is_file()]
        if not here:
            raise ModelNameError(f"'{source.path}' has no weights: expected a file such as {' or '.join(WEIGHTS_FILES[:3])}.")
        return here[0]
    published = recipe_of(name, source).published
    if "hf_hub" not in published:
        file = Path("~/.cache/clip", os.path.basename(published["url"])).expanduser()  # open_clip's own place
        return file if file.is_file() else None
    with suppress(OSError):
        return _on_hub(published, cached=True)
    return None


def _on_hub(published: dict, cached: bool = False) -> Path:
    """Return the file of weights of a repository, downloaded unless it is in the cache."""
    from huggingface_hub import snapshot_download

    repository, file = os.path.split(published["hf_hub"])
    repository, _, revision = repository.partition("@")
    files = [file] if file else WEIGHTS_FILES
    for file in files:
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=[file], local_files_only=cached)
        if (path := Path(folder, file)).is_file():
            return path
    raise FileNotFoundError(f"'{repository}' has none of {', '.join(files)}")


def _download(name: str, source: Source, published: dict) -> Path:
    import open_clip
    from huggingface_hub import hf_hub_url

    try:
        return _on_hub(published) if "hf_hub" in published else Path(open_clip.download_pretrained(published))
    except (OSError, RuntimeError, ValueError) as error:
        repository, file = os.path.split(published.get("hf_hub") or published["url"])
        file = file or "open_clip_pytorch_model.bin"
        url = hf_hub_url(repository.partition("@")[0], file) if "hf_hub" in published else published["url"]
        way = f"put it anywhere, and write '{source.architecture}:{source.tag}:/path/{file}' in place of the name."
        if source.repository:
            way = f"put it into '{source.path}', and write that folder in place of the name."
        raise WeightsError(
            f"The weights of '{name}' are not here and cannot be downloaded ({short_reason(error)}). Get the file '{file}' "
            f"from {url}, {way}"
        ) from error


def _load_weights(model: nn.Module, path: Path, source: Source) -> None:
    """Put the tensors of a checkpoint in place of a model's parameters, each in the type of the parameter.

    Positions of another resolution or context length are interpolated as open_clip does it, in a folder or a download, whose
    configuration says so; of a file that a name was given to they are refused.

    Raises:
        WeightsError: they do not fit the architecture, or the file cannot be read.
    """
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    state = read_state_dict(path)
    try:
        state = _adapt(state, model)
        if not (source.kind == "open_clip" and source.path):
            if not hasattr(model, "text") or hasattr(model.text, "positional_embedding"):
                resize_text_pos_embed(state, model)
            resize_pos_embed(state, model)
        wanted = {key: value.dtype for key, value in model.state_dict().items()}
        for key in state:  # one at a time, so that no second copy of all is there at any moment
            if key in wanted and state[key].is_floating_point():
                state[key] = state[key].to(wanted[key])
        model.load_state_dict(state, assign=True)
    except Exception as error:  # of many kinds: a tensor is missing or of another shape
        raise WeightsError(
            f"'{path}' cannot be loaded as {source.architecture or 'its configuration says'} ({type(error).__name__}: "
            f"{' '.join(str(error).split())[-300:]}). Expected a checkpoint of this architecture that holds tensors alone."
        ) from error
    model.requires_grad_(False)


def _adapt(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename and reshape the tensors of older and foreign checkpoints as open_clip's own `load_checkpoint` does."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    for key in ("input_resolution", "context_length", "vocab_size"):  # of OpenAI's archives
        state.pop(key, None)
    state = convert_state_dict(model, _from_transformers(state) if any(key.startswith(THEIRS) for key in state) else state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):
        own = getattr(model, key)
        if key in state and own is not None and state[key].shape != own.shape:
            state[key] = state[key].reshape(own.shape)
    if "logit_bias" not in state and model.logit_bias is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    state.pop("text.transformer.embeddings.position_ids", None)  # of older transformers
    return state


# ---------------------------------------------------------------------------------- the format of transformers

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


def _read_transformers(name: str, folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
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


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
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
