"""CLIPs of open_clip: what belongs to a name beside the numbers, the model without weights, and the weights put into it."""

import copy
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdpl.clip.blocks import UnsupportedTowerError
from kdpl.clip.model import Clip
from kdpl.clip.names import HUB_CONFIG, LOCAL, WEIGHTS_FILES, Architecture, ModelNameError, Source, weights_in
from kdpl.clip.preprocessing import Preprocessing, checked_preprocessing, hub_help, needs_transformers, tokenizer_of
from kdpl.clip.transformers_format import from_transformers, is_transformers, read_transformers
from kdpl.clip.weights import WeightsError, read_state_dict
from kdpl.common.messages import short_reason, shorten
from kdpl.common.safe_text import UnsafeTextError, read_json

_PREPROCESS_KEYS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")  # of open_clip
_POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")
PLAIN = "ViT-B-32"  # an architecture of the class that transformers' CLIPs are of, whose sizes are replaced


@dataclass(frozen=True)
class Recipe:
    """An open_clip model without its weights.

    Attributes:
        base: what `open_clip.create_model` calls it.
        config: of the model, as open_clip's model_configs have it, quick_gelu included.
        preprocessing: of its images.
        folder: with the files of its tokenizer, if it has any; empty: they are in the hub's cache.
        published: open_clip's entry of the weights to download; empty if there is none.
    """

    base: str
    config: dict[str, Any]
    preprocessing: Preprocessing
    folder: str
    published: dict[str, Any]


def recipe_of(name: str, source: Source) -> Recipe:
    """Return the recipe of the CLIP `name`.

    Raises:
        ModelNameError: a file without a tag could be of several tags that differ, or the configuration is unknown here.
    """
    import open_clip

    if source.kind != "open_clip":
        published = {"hf_hub": f"{source.repository}/"} if source.repository else {}
        if source.kind == "transformers":
            return _recipe(name, PLAIN, *read_transformers(name, Path(source.path)), source.path, published)
        read = _read_hub_config(Path(source.path, HUB_CONFIG))
        return _recipe(name, LOCAL + source.path, *read, source.path, published)
    tags = open_clip.list_pretrained_tags_by_model(source.architecture)
    recipes = {}
    for tag in [source.tag] if source.tag else tags or [""]:
        published = open_clip.get_pretrained_cfg(source.architecture, tag) if tag else {}
        config = open_clip.get_model_config(source.architecture)
        recipes[tag] = _recipe(name, source.architecture, config, published, "", published)
    first, *others = recipes.values()
    if any((r.config, r.preprocessing) != (first.config, first.preprocessing) for r in others):
        raise ModelNameError(
            f"'{name}' does not say which weights of {source.architecture} the file holds, and they differ in activation or "
            f"preprocessing. Write '{source.architecture}:TAG:{source.path}' with the file's tag: {', '.join(tags)}."
        )
    return first


def _recipe(name: str, base: str, config: dict, preprocess: dict, folder: str, published: dict) -> Recipe:
    config["quick_gelu"] = bool(config.get("quick_gelu") or preprocess.get("quick_gelu"))
    size = config["vision_cfg"].get("image_size", 224)
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ModelNameError(f"'{name}' takes images of {height} x {width} pixels: expected a CLIP with square input.")
    try:
        preprocessing = checked_preprocessing({"size": size, **preprocess})
    except ValueError as error:
        raise ModelNameError(f"'{name}' cannot be used: {error}.") from None
    if preprocessing.size != (height, width):
        raise ModelNameError(
            f"'{name}' takes images of {height} x {width} pixels by its 'model_cfg', and of {preprocessing.size} by its "
            "'preprocess_cfg': correct its open_clip_config.json."
        )
    return Recipe(base, config, preprocessing, folder, published)


def _read_hub_config(path: Path) -> tuple[dict, dict]:
    """Return the model's configuration and the preprocessing of an open_clip_config.json."""
    try:
        content = read_json(path)
        config, preprocess = content["model_cfg"], content.get("preprocess_cfg") or {}
        sound = all(isinstance(config[key], dict) for key in ("vision_cfg", "text_cfg"))
    except (OSError, UnsafeTextError, KeyError, TypeError):
        sound = False
    if not sound or not isinstance(config.get("embed_dim"), int) or not isinstance(preprocess, dict):
        raise ModelNameError(f"'{path}' is not the configuration of an open_clip model: expected JSON with 'model_cfg'.")
    if unknown := preprocess.keys() - _PREPROCESS_KEYS:
        raise ModelNameError(
            f"'{path}': 'preprocess_cfg' has {', '.join(map(shorten, sorted(unknown)))}, and what that does to images is not "
            f"known here: expected {', '.join(_PREPROCESS_KEYS)}."
        )
    return config, preprocess


def build(name: str, recipe: Recipe, half: bool = False) -> nn.Module:
    """Return the model of a recipe with parameters on the meta device, or with random ones if they cannot be there.

    Args:
        half: in open_clip's own fp16 if that works for the model; else in fp32.

    Raises:
        WeightsError: its text tower needs a package or a configuration that is not here.
        ModelNameError: open_clip cannot build it.
    """
    hub_text = recipe.config["text_cfg"].get("hf_model_name") or ""
    if hub_text:
        needs_transformers(name, "text tower", hub_text)
    try:
        model = _create(recipe, "fp32")
        if half and _has_own_half(model):
            model = _create(recipe, "fp16")
    except Exception as error:  # of many kinds, from deep inside
        if hub_text and isinstance(error, OSError):
            raise WeightsError(hub_help(name, "text tower", hub_text, error)) from error
        raise ModelNameError(f"open_clip cannot build '{name}' ({short_reason(error)}): choose another CLIP.") from error
    for scalar in (model.logit_scale, model.logit_bias):
        if scalar is not None:
            scalar.data = scalar.data.float()  # it multiplies features in fp32
    return model.requires_grad_(False).eval()


def _create(recipe: Recipe, precision: str) -> nn.Module:
    import open_clip

    sizes = recipe.config if recipe.base == PLAIN else {}

    def create() -> nn.Module:
        return open_clip.create_model(
            recipe.base, load_weights=False, precision=precision, device=None, pretrained_text=False,
            force_quick_gelu=recipe.config["quick_gelu"], **copy.deepcopy(sizes),
        )  # fmt: skip

    logging.disable(logging.WARNING)  # that the model has no weights yet
    try:
        with _empty_parameters():
            model = create()
        if any(value.is_meta for name, value in model.named_buffers()):  # computed on the device of a parameter
            raise RuntimeError("a buffer has no values")
        return model
    except RuntimeError:  # some image towers run their stem once to learn its size, which needs values
        return create()
    finally:
        logging.disable(logging.NOTSET)


def _has_own_half(model: nn.Module) -> bool:
    """Whether open_clip's fp16 weights work: for image towers of timm, and for plain CLIPs.

    A layer scale, a class token, a text projection with bias or a Hugging Face text tower stay in fp32 there and meet halves.
    """
    text = getattr(model, "text", model)
    if hasattr(model.visual, "trunk"):
        return getattr(text, "cls_emb", None) is None
    plain = hasattr(text, "token_embedding") and getattr(text, "cls_emb", None) is None
    scaled = any(type(module).__name__ == "LayerScale" for module in model.modules())
    return plain and not scaled and not isinstance(text.text_projection, nn.Module)


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


def find_open_clip(name: str, source: Source) -> Path | None:
    """Return the file of a CLIP's weights if it is here; nothing is downloaded."""
    from huggingface_hub import try_to_load_from_cache

    if source.path and not source.repository:
        return Path(source.path) if source.kind == "open_clip" else weights_in(Path(source.path))
    published = recipe_of(name, source).published
    if "hf_hub" not in published:
        file = Path("~/.cache/clip", os.path.basename(published["url"])).expanduser()  # open_clip's own place
        return file if file.is_file() else None
    repository, revision, candidates = _on_hub(published)
    found = (try_to_load_from_cache(repository, file, revision=revision) for file in candidates)
    return next((Path(path) for path in found if isinstance(path, str)), None)


def _on_hub(published: dict) -> tuple[str, str | None, list[str]]:
    """Return repository, revision, and the names that the file may have."""
    repository, file = os.path.split(published["hf_hub"])
    repository, _, revision = repository.partition("@")
    return repository, revision or None, [file] if file else [f for f in WEIGHTS_FILES if not f.endswith(".json")]


def _download(name: str, source: Source, published: dict) -> Path:
    import open_clip
    from huggingface_hub import hf_hub_url, snapshot_download

    url = published.get("url", "")
    try:
        if "hf_hub" not in published:
            return Path(open_clip.download_pretrained(published))
        repository, revision, candidates = _on_hub(published)
        likely = "open_clip_pytorch_model.bin"  # the one that repositories have had from the beginning
        url = hf_hub_url(repository, likely if likely in candidates else candidates[0])
        for candidate in candidates:
            file = Path(snapshot_download(repository, revision=revision, allow_patterns=[candidate]), candidate)
            if file.is_file():
                return file
        raise FileNotFoundError(f"'{repository}' has none of {', '.join(candidates)}")
    except (OSError, RuntimeError, ValueError) as error:
        file = url.rpartition("/")[2]
        way = f"put it anywhere, and write '{source.architecture}:{source.tag}:/path/{file}' in place of the name."
        if source.repository:
            way = f"put it into '{source.path}', and write that folder in place of the name."
        raise WeightsError(
            f"The weights of '{name}' are not here and cannot be downloaded ({short_reason(error)}). Get the file '{file}' "
            f"from {url}, {way}"
        ) from error


def load_weights(model: nn.Module, path: Path, name: str, source: Source) -> None:
    """Put the tensors of a checkpoint in place of a model's parameters, each in the type of the parameter.

    Raises:
        WeightsError: they do not fit the architecture, or the file cannot be read.
    """
    state, architecture = read_state_dict(path), source.architecture or name
    try:
        state = _adapt(state, model)
        _fit_positions(state, model, path, name, source)
        wanted = {key: value.dtype for key, value in model.state_dict().items()}
        for key in state:  # one at a time, so that no second copy of all is there at any moment
            if key in wanted and state[key].is_floating_point():
                state[key] = state[key].to(wanted[key])
        model.load_state_dict(state, assign=True)
    except WeightsError:
        raise
    except Exception as error:  # of many kinds: a tensor is missing or of another shape
        raise WeightsError(
            f"'{path}' cannot be loaded as {architecture} ({short_reason(error)}: {' '.join(str(error).split())[-200:]}). "
            "Expected a checkpoint of this open_clip architecture that holds tensors alone."
        ) from error
    model.requires_grad_(False)


def _adapt(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename and reshape the tensors of older and foreign checkpoints as open_clip's own `load_checkpoint` does."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    for key in ("input_resolution", "context_length", "vocab_size"):  # of OpenAI's archives
        state.pop(key, None)
    state = convert_state_dict(model, from_transformers(state) if is_transformers(state) else state)
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


def _fit_positions(state: dict[str, Tensor], model: nn.Module, path: Path, name: str, source: Source) -> None:
    """Interpolate the positions of a folder or a download as open_clip does, and print it.

    Raises:
        WeightsError: an architecture was named with a file, which holds weights of another resolution or context length.
    """
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    own = {key: value for key, value in model.named_parameters() if key in _POSITIONS and key in state}
    for key, value in own.items():
        there, here = tuple(state[key].shape), tuple(value.shape)
        if there == here or there[1:] != here[1:]:
            continue
        what = "images" if key.startswith("visual") else "texts"
        if source.kind == "open_clip" and source.path:
            raise WeightsError(
                f"'{path}' has positions {there} of {what}, {source.architecture} has {here}: they are not the weights that "
                f"'{name}' names. Give the architecture that they were trained as, or a folder with their {HUB_CONFIG}."
            )
        print(f"'{name}' has positions {here} of {what}, its weights have {there}: they are interpolated, as open_clip does")
    if not hasattr(model, "text") or hasattr(model.text, "positional_embedding"):
        resize_text_pos_embed(state, model)
    resize_pos_embed(state, model)


def load_open_clip(name: str, source: Source, half: bool) -> Clip:
    """Load a CLIP that open_clip knows; what can be refused without its weights is refused before they are read.

    Args:
        half: in open_clip's own fp16 if the model has it, else in fp32.
    """
    recipe = recipe_of(name, source)
    clip = _clip(build(name, recipe, half), name, recipe)
    file = find_open_clip(name, source) or _download(name, source, recipe.published)
    load_weights(clip.model, file, name, source)
    return clip


def outline_open_clip(name: str, source: Source, half: bool) -> Clip:
    """Build the same on the meta device, without weights."""
    recipe = recipe_of(name, source)
    return _clip(build(name, recipe, half).to("meta"), name, recipe)


def _clip(model: nn.Module, name: str, recipe: Recipe) -> Clip:
    tokenizer = tokenizer_of(name, recipe.config["text_cfg"], recipe.folder)
    return Clip(model, name, recipe.preprocessing, tokenizer, config=without_defaults(recipe.config))


def without_defaults(config: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration without what open_clip has by default, so that equal models have equal ones."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    kept = {key: value for key, value in config.items() if key not in ("custom_text", "vision_cfg", "text_cfg")}
    for part, defaults in (("vision_cfg", CLIPVisionCfg()), ("text_cfg", CLIPTextCfg())):
        kept[part] = {key: value for key, value in config[part].items() if value != getattr(defaults, key, None)}
    return kept


def describe_open_clip(name: str, source: Source) -> Architecture:
    """Return what is known of a CLIP without its weights.

    Raises:
        ModelNameError: open_clip cannot build it, or a file does not say which weights it holds.
        WeightsError: its tokenizer or its text tower needs a package or files that are not here.
    """
    recipe = recipe_of(name, source)
    return _describe(name, recipe.base, json.dumps(recipe.config), recipe.preprocessing, recipe.folder)


@lru_cache(maxsize=32)  # asked for by every part of a run that checks something
def _describe(name: str, base: str, config: str, p: Preprocessing, folder: str) -> Architecture:
    recipe = Recipe(base, json.loads(config), p, folder, {})
    clip, vision = _clip(build(name, recipe), name, recipe), recipe.config["vision_cfg"]
    no_context = no_deep = ""
    text_width = text_depth = 0
    try:
        text_width, text_depth, no_deep = clip.text.width, clip.text.depth, clip.text.no_deep
    except UnsupportedTowerError as error:
        no_context = str(error)
    try:
        vision_width, vision_depth = clip.vision.width, clip.vision.depth
    except UnsupportedTowerError:
        vision_width, vision_depth = vision.get("width", 0), 0
    return Architecture(
        resolution=p.size[0],
        patch_size=vision.get("patch_size", 16) if vision_depth else 0,
        vision_width=vision_width,
        vision_depth=vision_depth,
        text_width=text_width,
        text_depth=text_depth,
        context_length=clip.tokenizer.context_length,
        embed_dim=recipe.config["embed_dim"],
        interpolation=p.interpolation,
        mean=p.mean,
        std=p.std,
        resize_mode=p.resize_mode,
        no_text_context=no_context,
        no_deep_text=no_deep,
    )
