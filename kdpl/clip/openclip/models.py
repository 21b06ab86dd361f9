"""A CLIP of open_clip from its name: loaded, outlined without weights, or described."""

from functools import lru_cache
from pathlib import Path

from torch import nn

from kdpl.clip.blocks import UnsupportedTowerError
from kdpl.clip.inputs import Tokenizer
from kdpl.clip.model import Clip
from kdpl.clip.names import Architecture
from kdpl.clip.names.folders import HUB_CONFIG, TRANSFORMERS_CONFIG
from kdpl.clip.names.sources import Source
from kdpl.clip.openclip.building import build, has_own_half
from kdpl.clip.openclip.design import options_of
from kdpl.clip.openclip.recipe import Recipe, recipe_of
from kdpl.clip.openclip.tokenizer import tokenizer_of
from kdpl.clip.openclip.weights import cached_weights, load_weights, weights_file

_CONFIGS = (HUB_CONFIG, TRANSFORMERS_CONFIG, "preprocessor_config.json", "processor_config.json")


def load_open_clip(name: str, source: Source, half: bool) -> Clip:
    """Load a CLIP that open_clip knows; what can be refused without its weights is refused before they are read.

    Args:
        half: in open_clip's own fp16 if the model has it, else in fp32.
    """
    recipe = recipe_of(name, source)
    tokenizer = tokenizer_of(name, recipe)
    model = _built(name, recipe, half)
    load_weights(model, weights_file(name, source, recipe), name, source)
    return _clip(model, name, recipe, tokenizer)


def find_open_clip(name: str, source: Source) -> Path | None:
    """Return the file of a CLIP's weights if it is here; nothing is downloaded."""
    if source.path:
        return weights_file(name, source, recipe_of(name, source))
    cached = cached_weights(recipe_of(name, source).published)
    return Path(cached) if cached else None


def outline_open_clip(name: str, source: Source, half: bool) -> Clip:
    """Build the same on the meta device, without weights."""
    recipe = recipe_of(name, source)
    return _clip(_built(name, recipe, half).to("meta"), name, recipe, tokenizer_of(name, recipe))


def describe_open_clip(name: str, source: Source) -> Architecture:
    """Return what is known of a CLIP without its weights.

    Raises:
        ModelNameError: open_clip cannot build it, or a file does not say which weights it holds.
        WeightsError: its tokenizer or its text tower needs a package or files that are not here.
    """
    return _describe(name, source, _changed(source))


def _changed(source: Source) -> tuple[int, ...]:
    """Return when the files that a recipe is read from changed."""
    if not source.path:
        return ()
    path = Path(source.path)
    folder = path if path.is_dir() else path.parent
    return tuple(file.stat().st_mtime_ns for file in (path, *(folder / name for name in _CONFIGS)) if file.exists())


@lru_cache(maxsize=32)  # asked for by every part of a run that checks something
def _describe(name: str, source: Source, changed: tuple[int, ...]) -> Architecture:
    recipe = recipe_of(name, source)
    tokenizer = tokenizer_of(name, recipe)
    clip = _clip(build(name, recipe), name, recipe, tokenizer)
    no_context = no_deep = ""
    text_width = text_depth = 0
    try:
        text_width, text_depth, no_deep = clip.text.width, clip.text.depth, clip.text.no_deep
    except UnsupportedTowerError as error:
        no_context = str(error)
    try:
        vision_width, vision_depth = clip.vision.width, clip.vision.depth
    except UnsupportedTowerError:
        vision_width, vision_depth = recipe.config["vision_cfg"].get("width", 0), 0
    p = recipe.preprocessing
    return Architecture(
        resolution=p.size[0],
        patch_size=recipe.config["vision_cfg"].get("patch_size", 16) if vision_depth else 0,
        vision_width=vision_width,
        vision_depth=vision_depth,
        text_width=text_width,
        text_depth=text_depth,
        context_length=tokenizer.context_length,
        embed_dim=recipe.config["embed_dim"],
        interpolation=p.interpolation,
        mean=p.mean,
        std=p.std,
        resize_mode=p.resize_mode,
        no_text_context=no_context,
        no_deep_text=no_deep,
    )


def openai_resnet_layers(name: str) -> tuple[int, ...]:
    """Return the blocks of each stage of an OpenAI ResNet; open_clip knows it by the same name."""
    import open_clip

    return tuple(open_clip.get_model_config(name)["vision_cfg"]["layers"])


def _built(name: str, recipe: Recipe, half: bool) -> nn.Module:
    model = build(name, recipe)
    return build(name, recipe, half=True) if half and has_own_half(model) else model


def _clip(model: nn.Module, name: str, recipe: Recipe, tokenizer: Tokenizer) -> Clip:
    return Clip(model, name, recipe.preprocessing, tokenizer, options=options_of(recipe.config))
