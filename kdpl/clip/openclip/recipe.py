"""What belongs to a set of open_clip weights beside the numbers: configuration, activation, preprocessing.

A weights tag has it; so has a folder of the hub, in open_clip_config.json. A bare file is taken for that of a tag if it can be
told which, or if it makes no difference.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpl.clip.inputs import Preprocessing, checked_preprocessing
from kdpl.clip.names.folders import HUB_CONFIG
from kdpl.clip.names.sources import ModelNameError, Source
from kdpl.clip.openclip.transformers_format import read_transformers
from kdpl.common.messages import shorten
from kdpl.common.safe_text import UnsafeTextError, read_json
from kdpl.common.tensor_files import is_torchscript

_PREPROCESS_KEYS = ("size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color")  # of open_clip


@dataclass(frozen=True)
class Recipe:
    """An open_clip model without its weights.

    Attributes:
        config: of the model, as open_clip's model_configs have it, quick_gelu included.
        preprocessing: of its images.
        tokenizer_folder: where the files of its tokenizer lie; empty: in the hub's cache, or the tokenizer is CLIP's own.
        published: open_clip's entry of the weights tag; empty if there is none.
    """

    config: dict[str, Any]
    preprocessing: Preprocessing
    tokenizer_folder: str
    published: dict[str, Any]

    @property
    def hub_text(self) -> str:
        """The repository of a Hugging Face text tower; empty if the tower is open_clip's own."""
        return self.config["text_cfg"].get("hf_model_name") or ""

    @property
    def hub_tokenizer(self) -> str:
        """The repository of a tokenizer that needs `transformers`; empty if it is CLIP's byte-pair encoding."""
        return self.config["text_cfg"].get("hf_tokenizer_name") or ""


def recipe_of(name: str, source: Source) -> Recipe:
    """Return the recipe of the CLIP `name`.

    Raises:
        ModelNameError: a bare file could be of several tags that differ, or a tag contradicts its file.
    """
    if source.kind == "folder":
        config, preprocess = _read_hub_config(Path(source.path, HUB_CONFIG))
        return _recipe(name, config, preprocess, _folder_of_tokenizer(Path(source.path)), {})
    if source.kind == "transformers":
        config, preprocess = read_transformers(name, Path(source.path))
        return _recipe(name, config, preprocess, "", {})
    tag = source.tag
    known = _preprocess_of(name, source) if source.path else None
    if known is None and not tag:
        tag = _common_tag(name, source)
    published = _published(source.architecture, tag)
    if known is not None:
        if tag and _essence(source.architecture, published) != _essence(source.architecture, known):
            raise ModelNameError(
                f"'{name}': the file is not of the weights tag '{tag}': it belongs to weights with {_in_words(source, known)}, "
                f"'{tag}' has {_in_words(source, published)}. Give the tag of the file."
            )
        published = {**published, **known}
    config = _config(source.architecture)
    return _recipe(name, config, published, "", published if tag else {})


def _recipe(name: str, config: dict, preprocess: dict, tokenizer_folder: str, published: dict) -> Recipe:
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
    return Recipe(config, preprocessing, tokenizer_folder, published)


def _config(architecture: str) -> dict:
    import open_clip

    return open_clip.get_model_config(architecture)


def _published(architecture: str, tag: str) -> dict:
    import open_clip

    return open_clip.get_pretrained_cfg(architecture, tag) if tag else {}


def _essence(architecture: str, preprocess: dict) -> tuple:
    """Return what changes the features: activation, normalisation and resizing."""
    r = _recipe(architecture, _config(architecture), preprocess, "", {})
    return r.config["quick_gelu"], r.preprocessing


def _in_words(source: Source, preprocess: dict) -> str:
    quick, p = _essence(source.architecture, preprocess)
    activation = "QuickGELU" if quick else "GELU"
    return f"{activation}, mean {p.mean}, std {p.std}, {p.interpolation} interpolation, resize mode {p.resize_mode}"


def _common_tag(name: str, source: Source) -> str:
    """Return a tag that stands for all of an architecture, if they agree."""
    import open_clip

    architecture = source.architecture
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    groups: dict[tuple, list[str]] = {}
    for tag in tags:
        groups.setdefault(_essence(architecture, _published(architecture, tag)), []).append(tag)
    if len(groups) > 1:
        ways = "; ".join(
            f"{', '.join(some)}: {_in_words(source, _published(architecture, some[0]))}" for some in groups.values()
        )
        raise ModelNameError(
            f"'{name}' does not say which weights of {architecture} the file holds, and they differ ({ways}). Write "
            f"'{architecture}:TAG:{source.path}' with the file's tag."
        )
    return tags[0] if tags else ""


def _preprocess_of(name: str, source: Source) -> dict | None:
    """Return what a file itself tells: by the configuration beside it, its published name, or as OpenAI's archive.

    Raises:
        ModelNameError: the configuration beside it is of another architecture.
    """
    import open_clip

    path = Path(source.path)
    if (path.parent / HUB_CONFIG).is_file():
        config, preprocess = _read_hub_config(path.parent / HUB_CONFIG)
        _compare(name, source, config)
        return {"quick_gelu": bool(config.get("quick_gelu")), **preprocess}
    tags = open_clip.list_pretrained_tags_by_model(source.architecture)
    for tag in tags:
        if Path(_published(source.architecture, tag).get("url", "")).name == path.name:
            return _published(source.architecture, tag)
    if "openai" in tags and is_torchscript(path):
        return _published(source.architecture, "openai")
    return None


def _compare(name: str, source: Source, beside: dict) -> None:
    """Refuse an architecture that differs from the configuration beside a file, in shapes or in what no tensor shows."""
    own = _config(source.architecture)
    pairs = [("embed_dim", own["embed_dim"], beside["embed_dim"])]
    pairs += [("quick_gelu", True, False)] if own.get("quick_gelu") and not beside.get("quick_gelu") else []
    for part in ("vision_cfg", "text_cfg"):
        pairs += [(f"{part}.{key}", own[part][key], beside[part][key]) for key in own[part].keys() & beside[part].keys()]
    for key, named, there in sorted(pairs, key=lambda pair: pair[0]):
        if named != there:
            raise ModelNameError(
                f"'{name}': {HUB_CONFIG} beside the file is of another model: {key} is {there!r} there, {named!r} in "
                f"{source.architecture}. Give '{Path(source.path).parent}' alone, which is loaded as its configuration says."
            )


def _read_hub_config(path: Path) -> tuple[dict, dict]:
    """Return the model's configuration and the preprocessing of an open_clip_config.json."""
    try:
        content = read_json(path)
        config, preprocess = content["model_cfg"], content.get("preprocess_cfg") or {}
        sound = all(isinstance(config[key], dict) for key in ("vision_cfg", "text_cfg"))
        if sound and isinstance(config["embed_dim"], int) and isinstance(preprocess, dict):
            if unknown := preprocess.keys() - _PREPROCESS_KEYS:
                raise ModelNameError(
                    f"'{path}': 'preprocess_cfg' has {', '.join(map(shorten, sorted(unknown)))}, and what that does to images "
                    f"is not known here: expected {', '.join(_PREPROCESS_KEYS)}."
                )
            return config, preprocess
    except (OSError, UnsafeTextError, KeyError, TypeError):
        pass
    raise ModelNameError(f"'{path}' is not the configuration of an open_clip model: expected JSON with 'model_cfg'.")


def _folder_of_tokenizer(folder: Path) -> str:
    """Return the folder if it holds the files of a tokenizer, else nothing."""
    files = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")
    return str(folder) if any((folder / file).is_file() for file in files) else ""
