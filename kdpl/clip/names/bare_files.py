"""Files of weights without a configuration: taken for OpenAI's or TinyCLIP's if they can be, refused otherwise.

No tensor shows heads, activation or preprocessing. A wrong guess gives other features, which look right.
"""

from pathlib import Path

from kdpl.clip.files import WeightsError
from kdpl.clip.names import DECLARED, OPENAI_MODELS, Architecture
from kdpl.clip.names.sources import Source
from kdpl.clip.openai import COMPACT, VOCABULARY, architecture_of, plain_names, resnet_layers
from kdpl.common.tensor_files import is_torchscript

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


def check_design(name: str, source: Source, shapes: dict[str, tuple[int, ...]]) -> str:
    """Return what is assumed of a bare file, in one line to print; empty if nothing is.

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
