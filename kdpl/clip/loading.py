"""Load a frozen CLIP, student or teacher, from a name or a file (kdpl/clip/names.py lists them)."""

import os
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kdpl.clip.blocks import UnsupportedTowerError
from kdpl.clip.model import AUTOCAST, Clip
from kdpl.clip.names import OPENAI_MODELS, Architecture, Source, resolve
from kdpl.clip.openclip import find_open_clip, load_open_clip
from kdpl.clip.preprocessing import VOCABULARY, BytePairs, Preprocessing
from kdpl.clip.weights import WeightsError, openai_clip, openai_file, openai_weights, read_state_dict
from kdpl.config.keys import PRECISIONS, check_choice

COMPACT = "token_embedding.used"  # of the embedded models: the ids of the tokens whose rows they have


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
    source = resolve(name)
    if source.kind == "openai":
        clip = build_openai(name, read_state_dict(openai_weights(name)))
    elif source.kind == "file":
        clip = build_openai(name, read_state_dict(Path(source.path)))
    else:
        clip = load_open_clip(name, source, precision == "fp16")
    _check_finite(clip)
    set_precision(clip, precision, frozen_precision)
    if torch.device(device).type != "cpu":
        _ = clip.weights_digest  # read while they are here: each weight would be copied back
    clip.model.to(device)
    return clip


def outline_clip(name: str) -> Clip:
    """Build a CLIP on the meta device, with shapes and types in place of weights; nothing is downloaded.

    Raises:
        ModelNameError, WeightsError: as `describe`.
    """
    source = resolve(name)
    if source.kind == "file":
        state = {key: torch.empty_like(value, device="meta") for key, value in read_state_dict(Path(source.path)).items()}
        return build_openai(name, state)
    if source.kind == "openai":  # open_clip has the same models
        source = Source("open_clip", name.removesuffix("px").translate(str.maketrans("/@", "--")), "openai")
    return load_open_clip(name, source, half=False, weights=False)


def find_weights(name: str) -> Path | None:
    """Return the file of a CLIP's weights if it is here; nothing is downloaded.

    Raises:
        ModelNameError: as `load_clip`.
    """
    source = resolve(name)
    if source.kind not in ("openai", "file"):
        return find_open_clip(name, source)
    file = openai_file(name)[1] if source.kind == "openai" else Path(source.path)
    return file if file.is_file() else None


def describe(name: str) -> Architecture:
    """Return the architecture of the CLIP of a name, without loading or downloading weights.

    Raises:
        ModelNameError: as `load_clip`.
        WeightsError: as `load_clip`, of a file; or its tokenizer needs a package or files that are not here.
        UnsupportedTowerError: its text tower takes no prompts, as that of no published CLIP.
    """
    source = resolve(name)
    if source.kind == "openai":
        return OPENAI_MODELS[name]
    files = sorted(Path(source.path).iterdir()) if os.path.isdir(source.path) else [Path(source.path)]
    return _described(name, tuple((f.name, f.stat().st_mtime_ns, f.stat().st_size) for f in files if f.is_file()))


@lru_cache(maxsize=32)  # asked for by every part of a run that checks something
def _described(name: str, files: tuple) -> Architecture:
    return architecture_of(outline_clip(name))


def architecture_of(clip: Clip) -> Architecture:
    """Return the architecture of a CLIP."""
    vision_depth = 0
    with suppress(UnsupportedTowerError):  # then it takes no learned tokens
        vision_depth = clip.vision.depth
    text, length = clip.text, clip.tokenizer.context_length
    return Architecture(clip.preprocessing, vision_depth, text.depth, length, text.no_deep)


def build_openai(name: str, state: dict[str, Tensor]) -> Clip:
    """Build OpenAI's model around a state dict by its `build_model`, whose fp16 is replaced by the precision of the tensors.

    Raises:
        WeightsError: it is not that of an OpenAI CLIP.
    """
    try:
        state = _unpacked({k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")})
        with torch.device("meta"):
            model = openai_clip().model.build_model({k: torch.empty_like(v, device="meta") for k, v in state.items()})
        model.float().requires_grad_(False).load_state_dict(state, assign=True)
        mask = model.build_attention_mask()
        for block in model.transformer.resblocks:
            block.attn_mask = mask
    except Exception as error:  # of many kinds: a tensor is missing or of another shape
        raise WeightsError(
            f"'{name}' is not a checkpoint of an OpenAI CLIP ({type(error).__name__}: {' '.join(str(error).split())[:300]}). "
            "For an open_clip model of another design write 'MODEL:TAG:FILE'."
        ) from error
    heads, side = model.transformer.width // 64, model.visual.input_resolution
    config = {"quick_gelu": True, "vision_cfg": {}, "text_cfg": {} if heads == 8 else {"heads": heads}}  # without defaults
    return Clip(model, name, Preprocessing((side, side)), BytePairs(model.context_length), config=config)


def _unpacked(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the packing of the embedded models: the rows of used tokens alone, and the first positions alone."""
    used = state.pop(COMPACT, None)
    if used is None:
        return state
    rows, positions = state["token_embedding.weight"], state["positional_embedding"]
    state["token_embedding.weight"] = rows.new_zeros(VOCABULARY, rows.shape[1]).index_copy(0, used.long(), rows)
    state["positional_embedding"] = torch.cat([positions, positions.new_zeros(77 - len(positions), positions.shape[1])])
    return state


def set_precision(clip: Clip, precision: str, frozen_precision: str | None = None) -> None:
    """Set the types of the weights, and what the passes compute in; values as of `load_clip`."""
    frozen_precision, autocast = frozen_precision or precision, dict(AUTOCAST)
    for value in (precision, frozen_precision):
        check_choice("precision", value, PRECISIONS)
    if not type(clip.model).__module__.startswith("open_clip"):
        clip.model.float()
        if precision == "fp16":
            openai_clip().model.convert_weights(clip.model)
    elif precision == "fp16" and clip.dtype != torch.float16:  # open_clip has no half weights for it
        print(f"PREC fp16 of '{clip.name}' is autocast over fp32 weights: some of its layers do not take half weights")
        autocast["fp16"] = torch.float16
    clip.autocast_dtype, clip.frozen_autocast_dtype = autocast.get(precision), autocast.get(frozen_precision)


def _check_finite(clip: Clip) -> None:
    for key, value in clip.model.state_dict().items():
        if value.is_floating_point() and value.numel() and not torch.isfinite(torch.stack(torch.aminmax(value))).all():
            raise WeightsError(f"'{clip.name}' holds NaN or infinite weights in {key}: fetch it again, or choose another file.")
