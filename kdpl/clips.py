"""Loading a frozen CLIP, student or teacher, from a name or a file.

A name is one of
- an OpenAI model: "ViT-B/32", "RN50", ...: downloaded and checksummed by OpenAI's `clip` package;
- an embedded model: "emoji_student", "emoji_teacher" (see docs/benchmark.md);
- an open_clip architecture with a weights tag, "ViT-L-14:laion2b_s32b_b82k"; the tag may be left out where there is one choice;
- a checkpoint file of OpenAI's architecture: state dict (.pt, .safetensors) or JIT archive;
- an open_clip architecture with a checkpoint file, "ViT-H-14-quickgelu:/path/open_clip_pytorch_model.bin".

Nothing is unpickled but tensors, and nothing of a JIT archive is run (`kdpl.tensor_files`). `describe` tells a model's
architecture without loading its weights.
"""

import importlib.util
import inspect
import logging
import os
import sys
import urllib.request
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

from kdpl.blocks import UnsupportedTowerError
from kdpl.suggest import did_you_mean, gist
from kdpl.tensor_files import check_tensors, check_zip, is_torchscript, load_torch, load_torchscript
from kdpl.text import TextTower
from kdpl.vision import VisionTower

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
EMBEDDED = ("emoji_student", "emoji_teacher")
PRECISIONS = ("fp32", "fp16")
AUTOCAST = {"amp": torch.float16, "bf16": torch.bfloat16}  # for a PREC
DEFAULT_TAGS = {"ViT-H-14-quickgelu": "dfn5b"}  # the paper's teacher
_LONGEST_CONTEXT, _DEEPEST = 8192, 256  # of a CLIP from a file: far more than any has
VOCABULARY, SOT, EOT = 49408, 49406, 49407  # of CLIP's byte-pair encoding


@dataclass(frozen=True)
class Architecture:
    """What must be known of a CLIP before it is loaded; the vision depth of a ResNet is 0."""

    resolution: int
    patch_size: int
    vision_width: int
    vision_depth: int
    text_width: int
    text_depth: int
    context_length: int
    embed_dim: int

    @property
    def is_vit(self) -> bool:
        return self.vision_depth > 0


OPENAI_MODELS = {
    "RN50": Architecture(224, 0, 64, 0, 512, 12, 77, 1024),
    "RN101": Architecture(224, 0, 64, 0, 512, 12, 77, 512),
    "RN50x4": Architecture(288, 0, 80, 0, 640, 12, 77, 640),
    "RN50x16": Architecture(384, 0, 96, 0, 768, 12, 77, 768),
    "RN50x64": Architecture(448, 0, 128, 0, 1024, 12, 77, 1024),
    "ViT-B/32": Architecture(224, 32, 768, 12, 512, 12, 77, 512),
    "ViT-B/16": Architecture(224, 16, 768, 12, 512, 12, 77, 512),
    "ViT-L/14": Architecture(224, 14, 1024, 24, 768, 12, 77, 768),
    "ViT-L/14@336px": Architecture(336, 14, 1024, 24, 768, 12, 77, 768),
}


class ModelNameError(ValueError):
    """A name is no CLIP that can be loaded."""


class WeightsError(OSError):
    """The weights of a CLIP are missing, cannot be fetched or are not those of a CLIP."""


@dataclass(eq=False)
class Clip:
    """A frozen CLIP in eval mode with what is needed to feed it.

    Attributes:
        model: the unmodified model of OpenAI's `clip` or of open_clip.
        name: what it was loaded from.
        resolution: side of its square input, in pixels.
        mean, std: normalisation of its input, of RGB in 0..1.
        tokenize: sentences to token ids `(N, context_length)`, padded.
    """

    model: nn.Module
    name: str
    resolution: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    tokenize: Callable[[list[str]], Tensor]

    @cached_property
    def text(self) -> TextTower:
        """Its text tower for the text pass; UnsupportedTowerError where it is not CLIP's."""
        return TextTower(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return next(p.dtype for n, p in self.model.named_parameters() if n.startswith("visual") and p.dim() == 4)

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @cached_property
    def embed_dim(self) -> int:
        """Width d of its features."""
        try:
            return self.text.embed_dim
        except UnsupportedTowerError:
            return self.model.encode_text(self.tokenize(["a"]).to(self.device)).shape[1]

    @property
    def logit_scale(self) -> Tensor:
        """exp(logit_scale), a scalar in fp32."""
        return self.model.logit_scale.detach().float().exp().squeeze()

    @cached_property
    def vision(self) -> VisionTower:
        """Its image tower for the prompted pass; UnsupportedTowerError where it is not a ViT as CLIP has it."""
        return VisionTower(self.model.visual)

    def image_features(self, images: Tensor) -> Tensor:
        """Return the image features `(B, d)`, not normalised, of normalised images `(B, 3, resolution, resolution)`."""
        return self._encode_image(images.to(self.dtype))

    @cached_property
    def _encode_image(self) -> Callable[[Tensor], Tensor]:
        try:
            return self.vision
        except UnsupportedTowerError:
            return self.model.encode_image

    def compile(self) -> None:
        """Compile the pass from images to features with `torch.compile`; the first batch of a shape then takes a while."""
        self._encode_image = torch.compile(self._encode_image)


def cpu_likes_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(check() for check in (getattr(torch.cpu, name, None) for name in checks) if check is not None)


def precision_here(value: str, device_type: str, frozen: bool = False) -> str:
    """Return what a PREC becomes on a device: the same on a GPU.

    On a CPU, fp16 becomes fp32, or for a tower that nothing is learned in bf16 where the CPU has it.
    """
    if value in ("fp16", "amp") and device_type == "cpu":
        return "bf16" if frozen and cpu_likes_bf16() else "fp32"
    return value


def resolve_precision(value: str, device_type: str, frozen: bool = False) -> tuple[str, torch.dtype | None]:
    """Return the precision of a CLIP's weights on a device, for `load_clip`, and the type of autocast, for a PREC."""
    here = precision_here(value, device_type, frozen)
    return ("fp16" if here == "fp16" else "fp32"), AUTOCAST.get(here)


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the context of one precision, whatever the one around it; None: that of the weights."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


def similarity_logits(scale: Tensor | float, image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return scale times the products of features, in fp32 under any autocast.

    Args:
        image_features: `(B, d)`, normalised.
        text_features: `(C, d)`, or `(B, C, d)` where every image has its own, normalised.

    Returns:
        Logits `(B, C)`.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        if text_features.dim() == 2:
            return scale * image_features.float() @ text_features.float().T
        return scale * torch.einsum("bd,bcd->bc", image_features.float(), text_features.float())


def load_clip(name: str, precision: str = "fp32", device: str | torch.device = "cpu") -> Clip:
    """Load the CLIP that `name` tells (see the module's docstring), frozen, in eval mode.

    Args:
        precision: "fp32" or "fp16"; fp16 as OpenAI does it: layer norms and embeddings stay in fp32.

    Raises:
        ModelNameError: no such model; the message names the closest.
        WeightsError: no weights; the message names the file, its address and the folder it belongs in.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision '{precision}' is not one of {', '.join(PRECISIONS)}.")
    kind, architecture, weights = _resolve(name)
    if kind == "open_clip":
        clip = _load_open_clip(name, architecture, weights)
    else:
        state = _read_state_dict(_openai_weights(name) if kind == "openai" else Path(weights))
        clip = _build_openai(name, state)
    _check_finite(clip)
    clip.model.float()
    if precision == "fp16":
        _to_fp16(clip.model)
    clip.model.requires_grad_(False).eval().to(device)
    return clip


def outline_clip(name: str, precision: str = "fp32") -> Clip:
    """Return the CLIP that `name` tells with shapes and types in place of weights, on the meta device; nothing is downloaded.

    Raises:
        ModelNameError, WeightsError: as `describe`; or open_clip cannot build the model without its weights.
    """
    kind, architecture, weights = _resolve(name)
    if kind == "open_clip":
        clip = _outline_open_clip(name, architecture)
    elif kind == "openai":
        a = OPENAI_MODELS[name]
        clip = _as_clip(_openai_model(a, a.vision_depth or _openai_resnet_layers(name), VOCABULARY), name, a)
    else:
        shapes = _read_shapes(Path(weights))
        clip = _build_openai(name, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    clip.model.float()
    if precision == "fp16":
        _to_fp16(clip.model)
    clip.model.requires_grad_(False).eval()
    return clip


def _check_finite(clip: Clip) -> None:
    broken = [
        key
        for key, value in clip.model.state_dict().items()
        if value.is_floating_point() and value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all()
    ]
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise WeightsError(f"'{clip.name}' holds NaN or infinite weights in {shown}: fetch it again, or choose another file.")


def describe(name: str) -> Architecture:
    """Return the architecture of the CLIP that `name` tells, without loading or downloading weights.

    Raises:
        ModelNameError, WeightsError: as `load_clip`, of a file.
    """
    kind, architecture, weights = _resolve(name)
    if kind == "openai":
        return OPENAI_MODELS[name]
    if kind == "file":
        return _architecture_of(_read_shapes(Path(weights)), weights)
    return _open_clip_architecture(architecture)


# ---------------------------------------------------------------------------------------------------------------- names


def _resolve(name: str) -> tuple[str, str, str]:
    """Return the kind of a name ("openai", "file" or "open_clip"), its open_clip architecture, and tag or file."""
    if name in OPENAI_MODELS:
        return "openai", "", ""
    if name in EMBEDDED:
        folder = importlib.util.find_spec("kdpl.datasets").submodule_search_locations[0]
        return "file", "", str(Path(folder, "embedded", f"{name}.safetensors"))
    if os.path.isfile(os.path.expanduser(name)):
        return "file", "", os.path.expanduser(name)
    import open_clip

    architecture, _, weights = name.partition(":")
    if architecture not in open_clip.list_models():
        names = [*OPENAI_MODELS, *EMBEDDED, *open_clip.list_models()]
        raise ModelNameError(
            f"'{name}' is not an OpenAI CLIP model, an open_clip model or a file.{did_you_mean(architecture, names)} "
            f"OpenAI: {', '.join(OPENAI_MODELS)}; embedded: {', '.join(EMBEDDED)}; open_clip: MODEL:TAG or MODEL:FILE."
        )
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if not weights:
        weights = DEFAULT_TAGS.get(architecture) or (tags[0] if len(tags) == 1 else "")
        if not weights:
            raise ModelNameError(
                f"'{name}' has no single set of weights: write '{architecture}:TAG' with one of {', '.join(tags)}, "
                f"or '{architecture}:FILE' with a checkpoint."
            )
    elif weights not in tags:
        weights = os.path.expanduser(weights)
        if not os.path.isfile(weights):
            raise ModelNameError(
                f"'{weights}' in '{name}' is neither a file nor a weights tag of {architecture}."
                f"{did_you_mean(weights, tags)} Tags: {', '.join(tags) or 'none'}."
            )
    return "open_clip", architecture, weights


# --------------------------------------------------------------------------------------------------------------- OpenAI


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
    """Import the package at `origin` under a name of its own, so that whoever says `import clip` is left alone."""
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
    return importlib.import_module(f"{package.__name__}.simple_tokenizer").SimpleTokenizer()


def _openai_weights(name: str) -> Path:
    clip = openai_clip().clip
    url, folder = clip._MODELS[name], Path("~/.cache/clip").expanduser()
    try:
        return Path(clip._download(url, str(folder)))
    except (OSError, RuntimeError) as error:  # no network, no room, or a wrong checksum
        raise WeightsError(_download_help(name, Path(url).name, url, folder, error)) from error


def _download_help(name: str, file: str, url: str, folder: Path, error: object) -> str:
    return (
        f"The weights of '{name}' are not here and cannot be downloaded ({error}). Get the file '{file}' from {url} "
        f"and put it into {folder}, or give the path of a checkpoint file instead of the name."
    )


def _build_openai(name: str, state: dict[str, Tensor]) -> Clip:
    """Build OpenAI's model around a state dict, without giving up its precision as `clip.build_model` does."""
    state = {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    a = _architecture_of({k: tuple(v.shape) for k, v in state.items()}, name)
    try:
        state = _expand_compact(state)
        layers = a.vision_depth if a.is_vit else _resnet_layers(state)
        model = _openai_model(a, layers, state["token_embedding.weight"].shape[0])
        model.load_state_dict(state, assign=True)
    except Exception as error:  # of many kinds: a tensor is missing or of another shape
        raise WeightsError(f"'{name}' does not hold the weights of an OpenAI CLIP: {error}") from error
    mask = model.build_attention_mask()
    for block in model.transformer.resblocks:
        block.attn_mask = mask
    return _as_clip(model, name, a)


def _openai_model(a: Architecture, layers: int | tuple[int, ...], vocabulary: int) -> nn.Module:
    """Return OpenAI's model of these sizes on the meta device, so that no time is lost on random weights."""
    clip_model = importlib.import_module(f"{openai_clip().__name__}.model")
    with torch.device("meta"):
        return clip_model.CLIP(
            a.embed_dim, a.resolution, layers, a.vision_width, a.patch_size or None, a.context_length,
            vocabulary, a.text_width, a.text_width // 64, a.text_depth,
        )  # fmt: skip


def _as_clip(model: nn.Module, name: str, a: Architecture) -> Clip:
    return Clip(model, name, a.resolution, OPENAI_MEAN, OPENAI_STD, lambda texts: _tokenize(texts, a.context_length))


def _tokenize(texts: list[str], context_length: int) -> Tensor:
    ids = torch.zeros(len(texts), context_length, dtype=torch.long)
    for i, text in enumerate(texts):
        tokens = [SOT, *bpe().encode(text), EOT]
        _check_length(text, len(tokens), context_length)
        ids[i, : len(tokens)] = torch.tensor(tokens)
    return ids


def _check_length(text: str, tokens: int, context_length: int) -> None:
    if tokens > context_length:
        raise ValueError(f"'{text}' has {tokens} tokens, the text tower takes {context_length}: shorten it.")


def _tokenize_whole(tokenizer: Callable, texts: list[str]) -> Tensor:
    """Tokenize with open_clip's tokenizer, which by itself leaves out the end of what is too long."""
    if hasattr(tokenizer, "bpe_ranks"):  # CLIP's own encoding; others, of Hugging Face, have no common way to count
        for text in texts:
            _check_length(text, len(tokenizer.encode(text)) + 2, tokenizer.context_length)
    return tokenizer(texts)


def _expand_compact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the packing of the embedded models: the rows of used tokens alone, and the first positions alone."""
    used = state.pop("token_embedding.used", None)
    if used is None:
        return state
    rows, positions = state["token_embedding.weight"], state["positional_embedding"]
    state["token_embedding.weight"] = rows.new_zeros(VOCABULARY, rows.shape[1]).index_copy(0, used.long(), rows)
    state["positional_embedding"] = torch.cat([positions, positions.new_zeros(77 - len(positions), positions.shape[1])])
    return state


def _resnet_layers(state: dict[str, Tensor]) -> tuple[int, ...]:
    return tuple(len({k.split(".")[2] for k in state if k.startswith(f"visual.layer{i}.")}) for i in range(1, 5))


def _architecture_of(shapes: dict[str, tuple[int, ...]], name: str) -> Architecture:
    """Read the architecture of an OpenAI CLIP off the shapes of its state dict."""

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
        context = 77 if "token_embedding.used" in shapes else shapes["positional_embedding"][0]
        square = shapes["transformer.resblocks.0.attn.in_proj_weight"]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise WeightsError(
            f"'{name}' is not a checkpoint of an OpenAI CLIP: {error} is missing, or has another number of dimensions, among "
            f"{len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...). For an open_clip model of another design write "
            "'MODEL:FILE'."
        ) from error
    architecture = Architecture(*vision, text_width, depth("transformer.resblocks."), context, embed_dim)
    # What is built has these sizes: without a look at them a small file could ask for any amount of memory.
    fits = embedded_width == text_width and square == (3 * text_width, text_width) and text_width >= 64
    if not fits or context > _LONGEST_CONTEXT or max(architecture.vision_depth, architecture.text_depth) > _DEEPEST:
        raise WeightsError(f"'{name}' is not a checkpoint of an OpenAI CLIP: its sizes do not fit together ({architecture}).")
    return architecture


# ---------------------------------------------------------------------------------------------------------------- files


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint: safetensors, a PyTorch state dict (also under "state_dict"), or a JIT archive."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        state = _tensors(load_torchscript(path) if is_torchscript(path) else load_torch(path), path)
        check_tensors(state.items())
        return state
    except WeightsError:
        raise
    except Exception as error:  # of many kinds, from inside the unpickler
        raise WeightsError(
            f"'{path}' cannot be read as a CLIP checkpoint ({gist(error)}). "
            "Expected a safetensors file, a PyTorch state dict of tensors alone, or OpenAI's JIT archive; "
            "if it was downloaded, delete it and download it again."
        ) from error


def _read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read the shapes of a checkpoint's tensors, without their values where the format allows it."""
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                return {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            raise WeightsError(f"'{path}' is not a readable safetensors file: {error}") from error
    return {key: tuple(value.shape) for key, value in _read_state_dict(path).items()}


def _tensors(state: object, path: Path) -> dict[str, Tensor]:
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise WeightsError(f"'{path}' holds a {type(state).__name__}, expected a state dict of tensors.")
    return {str(k).removeprefix("module."): v for k, v in state.items()}


# ------------------------------------------------------------------------------------------------------------ open_clip


def _open_clip_architecture(name: str) -> Architecture:
    import open_clip

    config = open_clip.get_model_config(name)
    vision, text = config["vision_cfg"], config["text_cfg"]
    vit = isinstance(vision.get("layers", 12), int) and "timm_model_name" not in vision
    return Architecture(
        resolution=vision.get("image_size", 224),
        patch_size=vision.get("patch_size", 16) if vit else 0,
        vision_width=vision.get("width", 768),
        vision_depth=vision.get("layers", 12) if vit else 0,
        text_width=text.get("width", 512),
        text_depth=text.get("layers", 12),
        context_length=text.get("context_length", 77),
        embed_dim=config["embed_dim"],
    )


def _load_open_clip(name: str, architecture: str, weights: str) -> Clip:
    import open_clip

    preprocess = {}
    if not os.path.isfile(weights):
        preprocess = open_clip.get_pretrained_cfg(architecture, weights)
        weights = _open_clip_weights(name, preprocess)
    try:
        if zipfile.is_zipfile(weights):
            check_zip(Path(weights))
        quick_gelu = bool(preprocess.get("quick_gelu"))  # a tag may ask for it where the architecture's name does not
        model = open_clip.create_model(architecture, pretrained=weights, force_quick_gelu=quick_gelu)
    except Exception as error:  # of many kinds, from deep inside: shapes, pickles, truncated files
        raise WeightsError(
            f"'{weights}' cannot be loaded as {architecture} ({gist(error)}). "
            "Expected a checkpoint of this open_clip architecture that holds tensors alone."
        ) from error
    resolution = model.visual.image_size
    tokenizer = partial(_tokenize_whole, open_clip.get_tokenizer(architecture))
    return Clip(
        model,
        name,
        resolution[0] if isinstance(resolution, tuple) else resolution,
        tuple(preprocess.get("mean") or OPENAI_MEAN),
        tuple(preprocess.get("std") or OPENAI_STD),
        tokenizer,
    )


def _outline_open_clip(name: str, architecture: str) -> Clip:
    import open_clip

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns that the weights are random
    try:
        with torch.device("meta"):
            model = open_clip.create_model(architecture, pretrained=None, device="meta")
    except Exception as error:  # of many kinds, from deep inside
        raise ModelNameError(f"'{name}' cannot be laid out without weights ({gist(error)}): choose another CLIP.") from error
    finally:
        logging.root.setLevel(level)
    resolution = model.visual.image_size
    side = resolution[0] if isinstance(resolution, tuple) else resolution

    def tokenize(texts: list[str]) -> Tensor:
        return open_clip.get_tokenizer(architecture)(texts)  # not before it is needed: some come from a hub

    return Clip(model, name, side, OPENAI_MEAN, OPENAI_STD, tokenize)


def _openai_resnet_layers(name: str) -> tuple[int, ...]:
    """Return the blocks of each stage of an OpenAI ResNet; open_clip knows it by the same name."""
    import open_clip

    return tuple(open_clip.get_model_config(name)["vision_cfg"]["layers"])


def _open_clip_weights(name: str, pretrained: dict) -> str:
    """Return the file of an open_clip weights tag, from the cache or downloaded."""
    import open_clip
    from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

    repository, file = os.path.split(pretrained.get("hf_hub", ""))
    if not repository:
        url, folder = pretrained["url"], Path("~/.cache/clip").expanduser()
        try:
            return open_clip.download_pretrained(pretrained)
        except (OSError, RuntimeError) as error:
            raise WeightsError(_download_help(name, Path(url).name, url, folder, error)) from error
    candidates = [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    for candidate in candidates:
        cached = try_to_load_from_cache(repository, candidate)
        if isinstance(cached, str):
            return cached
    error: Exception | None = None
    for candidate in candidates:
        url = hf_hub_url(repository, candidate)
        try:  # one quick question first: the hub's client retries for most of a minute where there is no network
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
            return hf_hub_download(repository, candidate)
        except Exception as e:
            error = e
    folder = Path(constants.HF_HUB_CACHE)
    raise WeightsError(_download_help(name, candidates[-1], hf_hub_url(repository, candidates[-1]), folder, error)
                       + f" The path then reads '{name.partition(':')[0]}:/path/{candidates[-1]}'.") from error  # fmt: skip


def _to_fp16(model: nn.Module) -> None:
    """Halve the weights of projections and convolutions, as OpenAI's and open_clip's own fp16 does."""
    if type(model).__module__.startswith("open_clip"):
        from open_clip.model import convert_weights_to_lp

        convert_weights_to_lp(model, dtype=torch.float16)
    else:
        importlib.import_module(f"{openai_clip().__name__}.model").convert_weights(model)
