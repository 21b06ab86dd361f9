"""Load a frozen CLIP, student or teacher, from a name or a file (kdpl/clip/names.py lists them)."""

from pathlib import Path

import torch
from torch import nn

from kdpl.clip.model import AUTOCAST, Clip
from kdpl.clip.names import OPENAI_MODELS, Architecture, resolve
from kdpl.clip.openai import architecture_of, build_openai, empty_openai, openai_clip, openai_file, openai_weights
from kdpl.clip.openclip import describe_open_clip, find_open_clip, load_open_clip, outline_open_clip
from kdpl.clip.weights import WeightsError, file_sha256, read_shapes, read_state_dict
from kdpl.config.keys import PRECISIONS, check_choice


def load_clip(
    name: str, precision: str = "fp32", device: str | torch.device = "cpu", frozen_precision: str | None = None
) -> Clip:
    """Load a CLIP, frozen and in eval mode.

    Args:
        name: see kdpl/clip/names.py.
        precision: "fp32"; "fp16" as OpenAI and open_clip have it, or autocast to fp16 over fp32 weights for models whose half
            weights do not work, which is printed; "amp" or "bf16", autocast to fp16 or bf16 over fp32 weights.
        frozen_precision: of the passes in which nothing is learned, if it differs.

    Raises:
        ModelNameError: no such model; the message names the closest.
        WeightsError: no weights; the message names the file, its address and how to use it.
    """
    frozen_precision = frozen_precision or precision
    for value in (precision, frozen_precision):
        check_choice("precision", value, PRECISIONS)
    source = resolve(name)
    if source.kind not in ("openai", "file"):
        clip = load_open_clip(name, source, precision == "fp16")
    else:
        file = openai_weights(name) if source.kind == "openai" else Path(source.path)
        clip = build_openai(name, read_state_dict(file))
    _check_finite(clip)
    _set_precision(clip, precision, frozen_precision)
    if torch.device(device).type != "cpu":
        _ = clip.weights_digest  # read while they are here: each weight would be copied back
    clip.model.requires_grad_(False).eval().to(device)
    return clip


def find_weights(name: str, verify: bool = True) -> Path | None:
    """Return the file of a CLIP's weights if it is here; nothing is downloaded.

    Args:
        verify: a download of OpenAI's whose SHA-256 is not the published one is not here.

    Raises:
        ModelNameError: as `load_clip`.
    """
    source = resolve(name)
    if source.kind == "openai":
        url, file = openai_file(name)
        return file if file.is_file() and (not verify or file_sha256(file) in url) else None
    return Path(source.path) if source.kind == "file" else find_open_clip(name, source)


def outline_clip(name: str, precision: str = "fp32", frozen_precision: str | None = None) -> Clip:
    """Build a CLIP on the meta device, with shapes and types in place of weights; nothing is downloaded.

    Raises:
        ModelNameError, WeightsError: as `describe`.
    """
    source = resolve(name)
    if source.kind not in ("openai", "file"):
        clip = outline_open_clip(name, source, precision == "fp16")
    elif source.kind == "openai":
        clip = empty_openai(name, OPENAI_MODELS[name])
    else:
        shapes = read_shapes(Path(source.path))
        clip = build_openai(name, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    _set_precision(clip, precision, frozen_precision or precision)
    clip.model.requires_grad_(False).eval()
    return clip


def describe(name: str) -> Architecture:
    """Return the architecture of the CLIP of a name, without loading or downloading weights.

    Raises:
        ModelNameError: as `load_clip`.
        WeightsError: as `load_clip`, of a file; or its tokenizer needs a package or files that are not here.
    """
    source = resolve(name)
    if source.kind == "openai":
        return OPENAI_MODELS[name]
    if source.kind == "file":
        return architecture_of(read_shapes(Path(source.path)), source.path)
    return describe_open_clip(name, source)


def _set_precision(clip: Clip, precision: str, frozen_precision: str) -> None:
    """Set the types of the weights, and what the passes compute in."""
    autocast = dict(AUTOCAST)
    if not type(clip.model).__module__.startswith("open_clip"):
        clip.model.float()
        if precision == "fp16":
            _to_fp16(clip.model)
    elif precision == "fp16" and clip.dtype != torch.float16:  # open_clip has no half weights for it
        print(f"PREC fp16 of '{clip.name}' is autocast over fp32 weights: some of its layers do not take half weights")
        autocast["fp16"] = torch.float16
    clip.autocast_dtype, clip.frozen_autocast_dtype = autocast.get(precision), autocast.get(frozen_precision)


def _check_finite(clip: Clip) -> None:
    broken = [
        key
        for key, value in clip.model.state_dict().items()
        if value.is_floating_point() and value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all()
    ]
    if broken:
        shown = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        raise WeightsError(f"'{clip.name}' holds NaN or infinite weights in {shown}: fetch it again, or choose another file.")


def _to_fp16(model: nn.Module) -> None:
    """Halve the weights of projections and convolutions, as OpenAI's own fp16 does."""
    openai_clip().model.convert_weights(model)
