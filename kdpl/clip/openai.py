"""CLIPs of OpenAI's architecture: the `clip` package, its tokenizer and weights, and models built around a state dict."""

from pathlib import Path

import torch
from torch import Tensor

from kdpl.clip.model import Clip
from kdpl.clip.names import Architecture
from kdpl.clip.preprocessing import VOCABULARY, BytePairs, Preprocessing
from kdpl.clip.weights import WeightsError, openai_clip

COMPACT = "token_embedding.used"  # of the embedded models: the ids of the tokens whose rows they have
LONGEST_CONTEXT = 8192
RESNET_LAYERS = {  # of each stage
    "RN50": (3, 4, 6, 3),
    "RN101": (3, 4, 23, 3),
    "RN50x4": (4, 6, 10, 6),
    "RN50x16": (6, 8, 18, 8),
    "RN50x64": (3, 15, 36, 10),
}


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
            f"{url} and put it into {folder}, or write 'openai:FILE' with a file of these weights."
        ) from error


def build_openai(name: str, state: dict[str, Tensor]) -> Clip:
    """Build OpenAI's model around a state dict, without giving up its precision as `clip.build_model` does."""
    state = {k: v for k, v in state.items() if k not in ("input_resolution", "context_length", "vocab_size")}
    a = architecture_of({k: tuple(v.shape) for k, v in state.items()}, name)
    try:
        if a.context_length > LONGEST_CONTEXT:  # whose mask would fill the memory
            raise ValueError(f"{a.context_length} positions of texts")
        state = _expand_compact(state)
        stages = tuple(len({k.split(".")[2] for k in state if k.startswith(f"visual.layer{i}.")}) for i in range(1, 5))
        clip = empty_openai(name, a, a.vision_depth or stages, len(state["token_embedding.weight"]))
        clip.model.load_state_dict(state, assign=True)
        mask = clip.model.build_attention_mask()
        for block in clip.model.transformer.resblocks:
            block.attn_mask = mask
    except Exception as error:  # of many kinds: a tensor is missing or of another shape
        raise WeightsError(
            f"'{name}' does not hold the weights of an OpenAI CLIP: {' '.join(str(error).split())[:300]}"
        ) from error
    return clip


def empty_openai(name: str, a: Architecture, layers: int | tuple[int, ...] = 0, vocabulary: int = VOCABULARY) -> Clip:
    """Return OpenAI's model of these sizes on the meta device.

    Args:
        layers: of the image tower, or of a ResNet's stages; those of OpenAI's model `name` by default.
    """
    build, heads = openai_clip().model.CLIP, a.text_width // 64
    with torch.device("meta"):
        model = build(
            a.embed_dim, a.resolution, layers or a.vision_depth or RESNET_LAYERS[name], a.vision_width, a.patch_size or None,
            a.context_length, vocabulary, a.text_width, heads, a.text_depth,
        )  # fmt: skip
    config = {"quick_gelu": True, "vision_cfg": {}, "text_cfg": {} if heads == 8 else {"heads": heads}}  # without defaults
    return Clip(model, name, Preprocessing((a.resolution, a.resolution)), BytePairs(a.context_length), config=config)


def _expand_compact(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the packing of the embedded models: the rows of used tokens alone, and the first positions alone."""
    used = state.pop(COMPACT, None)
    if used is None:
        return state
    rows, positions = state["token_embedding.weight"], state["positional_embedding"]
    state["token_embedding.weight"] = rows.new_zeros(VOCABULARY, rows.shape[1]).index_copy(0, used.long(), rows)
    state["positional_embedding"] = torch.cat([positions, positions.new_zeros(77 - len(positions), positions.shape[1])])
    return state


def architecture_of(shapes: dict[str, tuple[int, ...]], name: str) -> Architecture:
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
        context = 77 if COMPACT in shapes else shapes["positional_embedding"][0]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise WeightsError(
            f"'{name}' is not a checkpoint of an OpenAI CLIP: {error} is missing, or has another number of dimensions, among "
            f"{len(shapes)} tensors ({', '.join(list(shapes)[:3])}, ...). For an open_clip model of another design write "
            "'MODEL:TAG:FILE'."
        ) from error
    return Architecture(*vision, text_width, depth("transformer.resblocks."), context, embed_dim)
