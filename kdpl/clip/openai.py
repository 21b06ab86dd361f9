"""CLIPs of OpenAI's architecture: the `clip` package, its tokenizer and weights, and models built around a state dict."""

import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Mapping
from functools import lru_cache
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from kdpl.clip.files import WeightsError
from kdpl.clip.inputs import Preprocessing, Tokenizer
from kdpl.clip.model import Clip
from kdpl.clip.names import DECLARED, OPENAI_MODELS, Architecture
from kdpl.clip.names.sources import Source
from kdpl.common.tensor_files import is_torchscript

_LONGEST_CONTEXT, _DEEPEST = 8192, 256  # of a CLIP from a file: far more than any has
COMPACT = "token_embedding.used"  # of the embedded models: the ids of the tokens whose rows they have
VOCABULARY, SOT, EOT = 49408, 49406, 49407  # of CLIP's byte-pair encoding
OPENAI_LAYERS = {  # of the ResNets' stages
    "RN50": (3, 4, 6, 3),
    "RN101": (3, 4, 23, 3),
    "RN50x4": (4, 6, 10, 6),
    "RN50x16": (6, 8, 18, 8),
    "RN50x64": (3, 15, 36, 10),
}
TINY_CLIPS = (  # https://github.com/microsoft/Cream/tree/main/TinyCLIP
    Architecture(224, 16, 256, 10, 256, 3, 77, 512),
    Architecture(224, 16, 512, 12, 512, 6, 77, 512),
    Architecture(224, 32, 512, 12, 512, 6, 77, 512),
    Architecture(224, 32, 640, 12, 512, 9, 77, 512),
    Architecture(224, 0, 44, 0, 512, 6, 77, 1024),
    Architecture(224, 0, 56, 0, 512, 9, 77, 1024),
)
WAYS = (
    "write 'MODEL:TAG:FILE' with open_clip's names of the weights (kdpl models lists them), or put the model's "
    f"open_clip_config.json beside the file. If OpenAI's own clip.load is right for it (QuickGELU, heads of 64), write "
    f"'{DECLARED}FILE'."
)


@lru_cache(maxsize=1)
def openai_clip() -> ModuleType:
    """Return OpenAI's `clip` package as published.

    Inside a fork of MaPLe or PromptSRC `import clip` finds the fork's patched copy, whose `build_model` wants a second
    argument. So every `clip` on the path is looked at, and the first whose `build_model` takes a state dict alone is taken.

    Raises:
        ImportError: there is none; the message says how to install it.
    """
    for entry in sys.path:
        spec = PathFinder.find_spec("clip", [entry or os.getcwd()])
        if spec is None or spec.origin is None or not Path(spec.origin).with_name("model.py").is_file():
            continue
        loaded = sys.modules.get("clip")
        module = loaded if loaded is not None and loaded.__spec__.origin == spec.origin else _import_privately(spec.origin)
        if module is not None and len(inspect.signature(module.clip.build_model).parameters) == 1:
            return module
    raise ImportError("No unmodified CLIP package is installed: pip install rf-clip (or OpenAI's clip).")


def _import_privately(origin: str) -> ModuleType | None:
    """Import the package at `origin` under its own name, so that whoever says `import clip` is left alone."""
    name = f"_kdpl_clip_{abs(hash(origin))}"
    spec = importlib.util.spec_from_file_location(name, origin, submodule_search_locations=[str(Path(origin).parent)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        importlib.import_module(f"{name}.clip")
        importlib.import_module(f"{name}.model")
    except Exception:  # a fork's copy may need what is not installed; it is not the one we look for
        return None
    return module


@lru_cache(maxsize=1)
def bpe() -> object:
    """Return CLIP's byte-pair tokenizer, with `encode(str) -> list[int]` and `decode(list[int]) -> str`."""
    package = openai_clip()
    if (own := getattr(package.clip, "_tokenizer", None)) is not None:  # to make another one takes a tenth of a second
        return own
    return importlib.import_module(f"{package.__name__}.simple_tokenizer").SimpleTokenizer()


def openai_file(name: str) -> tuple[str, Path]:
    """Return the address of OpenAI's weights, which has their SHA-256, and the file that they are downloaded to."""
    url = openai_clip().clip._MODELS[name]
    return url, Path("~/.cache/clip").expanduser() / Path(url).name


def openai_weights(name: str) -> Path:
    clip, (url, file) = openai_clip().clip, openai_file(name)
    folder = file.parent
    try:
        return Path(clip._download(url, str(folder)))
    except (OSError, RuntimeError) as error:  # no network, no room, or a wrong checksum
        raise WeightsError(
            f"The weights of '{name}' are not here and cannot be downloaded ({error}). Get the file '{Path(url).name}' from "
            f"{url} and put it into {folder}, or give the path of a checkpoint file instead of the name."
        ) from error


def build_openai(name: str, state: dict[str, Tensor]) -> Clip:
    """Build OpenAI's model around a state dict, without giving up its precision as `clip.build_model` does."""
    state = {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    state, gelu = plain_names(state)
    a = architecture_of({k: tuple(v.shape) for k, v in state.items()}, name)
    try:
        state = _expand_compact(state)
        layers = a.vision_depth if a.is_vit else resnet_layers(state)
        model = openai_model(a, layers, state["token_embedding.weight"].shape[0])
        model.load_state_dict(state, assign=True)
    except Exception as error:  # of many kinds: a tensor is missing or of another shape
        raise WeightsError(f"'{name}' does not hold the weights of an OpenAI CLIP: {error}") from error
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    if gelu:
        vision = model.visual.transformer.resblocks if a.is_vit else ()
        for block in (*model.transformer.resblocks, *vision):
            block.mlp.gelu = nn.GELU()
    return as_clip(model, name, a)


_TINY_CLIP = re.compile(r"^_?(image_encoder|text_encoder|logit_scale)(_without_ddp)?\.(module\.)*")


def plain_names(state: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Return a state dict under OpenAI's names, and whether it is of TinyCLIP, which computes with GELU.

    TinyCLIP's checkpoints hold each tower in its own module, wrapped for several GPUs or not.
    """
    if not any(_TINY_CLIP.match(key) for key in state):
        return state, False
    return {_TINY_CLIP.sub("", key): value for key, value in state.items()}, True


def openai_model(a: Architecture, layers: int | tuple[int, ...], vocabulary: int) -> nn.Module:
    """Return OpenAI's model of these sizes on the meta device, so that no time is lost on random weights."""
    clip_model = importlib.import_module(f"{openai_clip().__name__}.model")
    without_weights = type("CLIP", (clip_model.CLIP,), {"initialize_parameters": lambda self: None})
    with torch.device("meta"):
        model = without_weights(
            a.embed_dim, a.resolution, layers, a.vision_width, a.patch_size or None, a.context_length,
            vocabulary, a.text_width, a.text_width // 64, a.text_depth,
        )  # fmt: skip
    model.__class__ = clip_model.CLIP
    return model


def as_clip(model: nn.Module, name: str, a: Architecture) -> Clip:
    return Clip(model, name, Preprocessing((a.resolution, a.resolution)), BytePairs(a.context_length))


class BytePairs(Tokenizer):
    """CLIP's byte-pair encoding as OpenAI has it."""

    sot, eot, special = (SOT,), (EOT,), frozenset((SOT, EOT))

    def __init__(self, context_length: int = 77):
        self.context_length = context_length

    def encode(self, text: str) -> list[int]:
        return bpe().encode(text)

    def decode(self, token: int) -> str:
        return bpe().decode([token]).strip()

    def vocabulary(self) -> Mapping[str, int]:
        return bpe().encoder

    @property
    def digest(self) -> str:
        return _digest_of(self.context_length)


@lru_cache(maxsize=8)
def _digest_of(context_length: int) -> str:
    return Tokenizer.digest.func(BytePairs(context_length))


def _expand_compact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the packing of the embedded models: the rows of used tokens alone, and the first positions alone."""
    used = state.pop(COMPACT, None)
    if used is None:
        return state
    rows, positions = state["token_embedding.weight"], state["positional_embedding"]
    state["token_embedding.weight"] = rows.new_zeros(VOCABULARY, rows.shape[1]).index_copy(0, used.long(), rows)
    state["positional_embedding"] = torch.cat([positions, positions.new_zeros(77 - len(positions), positions.shape[1])])
    return state


def resnet_layers(state: dict[str, Any]) -> tuple[int, ...]:
    """Return the blocks of each stage of a ResNet."""
    return tuple(len({k.split(".")[2] for k in state if k.startswith(f"visual.layer{i}.")}) for i in range(1, 5))


def architecture_of(shapes: dict[str, tuple[int, ...]], name: str) -> Architecture:
    """Read the architecture of an OpenAI CLIP off the shapes of its state dict."""
    shapes, _ = plain_names(shapes)

    def depth(prefix: str) -> int:
        return len({k[len(prefix) :].split(".")[0] for k in shapes if k.startswith(prefix)})

    try:
        if "visual.proj" in shapes:
            width, _, _, patch = shapes["visual.conv1.weight"]
            side = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
            vision = (patch * side, patch, width, depth("visual.transformer.resblocks."))
        else:
            side = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
            vision = (32 * side, 0, shapes["visual.layer1.0.conv1.weight"][0], 0)
        text_width, embed_dim = shapes["text_projection"]
        _, embedded_width = shapes["token_embedding.weight"]
        context = 77 if COMPACT in shapes else shapes["positional_embedding"][0]
        square = shapes["transformer.resblocks.0.attn.in_proj_weight"]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise WeightsError(
            f"'{name}' is not a checkpoint of an OpenAI CLIP: {error} is missing, or has another number of dimensions, among "
            f"{len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...). For an open_clip model of another design write "
            "'MODEL:TAG:FILE'."
        ) from error
    architecture = Architecture(*vision, text_width, depth("transformer.resblocks."), context, embed_dim)
    # What is built has these sizes: without a look at them a small file could ask for any amount of memory.
    fits = embedded_width == text_width and square == (3 * text_width, text_width) and text_width >= 64
    if not fits or context > _LONGEST_CONTEXT or max(architecture.vision_depth, architecture.text_depth) > _DEEPEST:
        raise WeightsError(f"'{name}' is not a checkpoint of an OpenAI CLIP: its sizes do not fit together ({architecture}).")
    return architecture


def check_design(name: str, source: Source, shapes: dict[str, tuple[int, ...]]) -> str:
    """Return what is assumed of a file of weights without a configuration, in one line to print; empty if nothing is.

    No tensor shows heads, activation or preprocessing, and a wrong guess gives other features, which look right. So such a
    file is taken for OpenAI's or TinyCLIP's if it can be, and refused otherwise.

    Raises:
        WeightsError: it is not known to be of OpenAI's or TinyCLIP's design, or is no CLIP.
    """
    plain, tiny = plain_names(shapes)
    a = architecture_of(shapes, source.path)
    if COMPACT in shapes or (source.tag == "openai" and not tiny):  # only KDPL packs them so, and it packs OpenAI's design
        return ""
    if tag := _published_elsewhere(Path(source.path).name):
        raise WeightsError(
            f"'{source.path}' has the name of open_clip's weights {tag}, and no tensor shows their activation and "
            f"preprocessing: {WAYS}"
        )
    if tiny:
        known = a in TINY_CLIPS and (a.is_vit or resnet_layers(plain) == OPENAI_LAYERS["RN50"])
        if not known:
            raise WeightsError(f"'{source.path}' is of no size that TinyCLIP has published ({_in_words(a)}): {WAYS}")
        return ""
    found = [
        model
        for model, published in OPENAI_MODELS.items()
        if a == published and (a.is_vit or resnet_layers(plain) == OPENAI_LAYERS[model])
    ]
    if not found or plain["token_embedding.weight"][0] != VOCABULARY:
        raise WeightsError(
            f"'{source.path}' is of no size that OpenAI has published ({_in_words(a)}), so its number of heads, its activation "
            f"and its preprocessing are not known: {WAYS}"
        )
    if is_torchscript(Path(source.path)):
        return ""
    return f"'{name}' is taken for weights of OpenAI's {found[0]}, with QuickGELU and OpenAI's preprocessing (docs/models.md)"


def _published_elsewhere(file: str) -> str:
    """Return the open_clip weights that a file's name belongs to; empty if it is of none, or OpenAI's."""
    import open_clip

    if file.startswith("open_clip_"):  # what the hub calls all of them
        return "(which of them, no configuration beside it says)"
    for model, tag in open_clip.list_pretrained():
        if tag != "openai" and Path(open_clip.get_pretrained_cfg(model, tag).get("url") or "").stem == Path(file).stem:
            return f"'{model}:{tag}'"
    return ""


def _in_words(a: Architecture) -> str:
    image = f"images of {a.resolution} pixels, width {a.vision_width}" + (f", {a.vision_depth} layers" if a.is_vit else "")
    return f"{image}; text of width {a.text_width}, {a.text_depth} layers; features of width {a.embed_dim}"
