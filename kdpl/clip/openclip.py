"""CLIPs that open_clip builds: architectures as data, weights by tag or from a file."""

import logging
import os
import urllib.request
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from kdpl.clip.files import WeightsError
from kdpl.clip.model import OPENAI_MEAN, OPENAI_STD, Clip
from kdpl.clip.names import Architecture, ModelNameError
from kdpl.clip.openai import check_length, download_help
from kdpl.common.messages import short_reason
from kdpl.common.tensor_files import check_zip


def _tokenize_whole(tokenizer: Callable, texts: list[str]) -> Tensor:
    """Tokenize with open_clip's tokenizer, which by itself leaves out the end of what is too long."""
    if hasattr(tokenizer, "bpe_ranks"):  # CLIP's own encoding; others, of Hugging Face, have no common way to count
        for text in texts:
            check_length(text, len(tokenizer.encode(text)) + 2, tokenizer.context_length)
    return tokenizer(texts)


def open_clip_architecture(name: str) -> Architecture:
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


def load_open_clip(name: str, architecture: str, weights: str) -> Clip:
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
            f"'{weights}' cannot be loaded as {architecture} ({short_reason(error)}). "
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


def outline_open_clip(name: str, architecture: str) -> Clip:
    import open_clip

    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # it warns that the weights are random
    try:
        with torch.device("meta"):
            model = open_clip.create_model(architecture, pretrained=None, device="meta")
    except Exception as error:  # of many kinds, from deep inside
        raise ModelNameError(
            f"'{name}' cannot be laid out without weights ({short_reason(error)}): choose another CLIP."
        ) from error
    finally:
        logging.root.setLevel(level)
    resolution = model.visual.image_size
    side = resolution[0] if isinstance(resolution, tuple) else resolution

    def tokenize(texts: list[str]) -> Tensor:
        return open_clip.get_tokenizer(architecture)(texts)  # not before it is needed: some come from a hub

    return Clip(model, name, side, OPENAI_MEAN, OPENAI_STD, tokenize)


def openai_resnet_layers(name: str) -> tuple[int, ...]:
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
            raise WeightsError(download_help(name, Path(url).name, url, folder, error)) from error
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
    raise WeightsError(download_help(name, candidates[-1], hf_hub_url(repository, candidates[-1]), folder, error)
                       + f" The path then reads '{name.partition(':')[0]}:/path/{candidates[-1]}'.") from error  # fmt: skip
