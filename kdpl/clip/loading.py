"""Load a frozen CLIP, student or teacher, from a name or a file (kdpl/clip/names.py lists the names)."""

import importlib
from pathlib import Path

import torch
from torch import nn

from kdpl.clip.files import WeightsError, read_shapes, read_state_dict
from kdpl.clip.model import Clip
from kdpl.clip.names import OPENAI_MODELS, Architecture, resolve
from kdpl.clip.openai import VOCABULARY, architecture_of, as_clip, build_openai, openai_clip, openai_model, openai_weights
from kdpl.clip.openclip import load_open_clip, open_clip_architecture, openai_resnet_layers, outline_open_clip
from kdpl.clip.precision import AUTOCAST
from kdpl.config.choices import PRECISIONS, check_choice


def load_clip(
    name: str, precision: str = "fp32", device: str | torch.device = "cpu", frozen_precision: str | None = None
) -> Clip:
    """Load a CLIP, frozen and in eval mode.

    Args:
        name: see kdpl/clip/names.py.
        precision: "fp32"; "fp16" as OpenAI has it, with layer norms and embeddings in fp32; "amp" or "bf16", autocast to
            fp16 or bf16 over fp32 weights.
        frozen_precision: of the passes in which nothing is learned, if it differs.

    Raises:
        ModelNameError: no such model; the message names the closest.
        WeightsError: no weights; the message names the file, its address and the folder it belongs in.
    """
    frozen_precision = frozen_precision or precision
    for value in (precision, frozen_precision):
        check_choice("precision", value, PRECISIONS)
    kind, architecture, weights = resolve(name)
    if kind == "open_clip":
        clip = load_open_clip(name, architecture, weights)
    else:
        state = read_state_dict(openai_weights(name) if kind == "openai" else Path(weights))
        clip = build_openai(name, state)
    _check_finite(clip)
    clip.model.float()
    if precision == "fp16":
        _to_fp16(clip.model)
    clip.model.requires_grad_(False).eval().to(device)
    clip.autocast_dtype, clip.frozen_autocast_dtype = AUTOCAST.get(precision), AUTOCAST.get(frozen_precision)
    return clip


def outline_clip(name: str, precision: str = "fp32", frozen_precision: str | None = None) -> Clip:
    """Build a CLIP on the meta device, with shapes and types in place of weights; nothing is downloaded.

    Raises:
        ModelNameError, WeightsError: as `describe`; or open_clip cannot build the model without its weights.
    """
    kind, architecture, weights = resolve(name)
    if kind == "open_clip":
        clip = outline_open_clip(name, architecture)
    elif kind == "openai":
        a = OPENAI_MODELS[name]
        clip = as_clip(openai_model(a, a.vision_depth or openai_resnet_layers(name), VOCABULARY), name, a)
    else:
        shapes = read_shapes(Path(weights))
        clip = build_openai(name, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    clip.model.float()
    if precision == "fp16":
        _to_fp16(clip.model)
    clip.model.requires_grad_(False).eval()
    clip.autocast_dtype, clip.frozen_autocast_dtype = AUTOCAST.get(precision), AUTOCAST.get(frozen_precision or precision)
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
    """Return the architecture of the CLIP of a name, without loading or downloading weights.

    Raises:
        ModelNameError, WeightsError: as `load_clip`, of a file.
    """
    kind, architecture, weights = resolve(name)
    if kind == "openai":
        return OPENAI_MODELS[name]
    if kind == "file":
        return architecture_of(read_shapes(Path(weights)), weights)
    return open_clip_architecture(architecture)


def _to_fp16(model: nn.Module) -> None:
    """Halve the weights of projections and convolutions, as OpenAI's and open_clip's own fp16 does."""
    if type(model).__module__.startswith("open_clip"):
        from open_clip.model import convert_weights_to_lp

        convert_weights_to_lp(model, dtype=torch.float16)
    else:
        importlib.import_module(f"{openai_clip().__name__}.model").convert_weights(model)
