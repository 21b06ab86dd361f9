"""The weights of open_clip's models: found, fetched, and put into a model that was built without."""

import os
import urllib.request
from pathlib import Path

import torch
from torch import Tensor, nn

from kdpl.clip.files import WeightsError, read_state_dict
from kdpl.clip.names.folders import weights_in
from kdpl.clip.names.sources import Source
from kdpl.clip.openclip.answers import checked_answers
from kdpl.clip.openclip.recipe import Recipe
from kdpl.clip.openclip.transformers_format import from_transformers, is_transformers
from kdpl.common.messages import short_reason

_POSITIONS = ("visual.positional_embedding", "positional_embedding", "text.positional_embedding")


def weights_file(name: str, source: Source, recipe: Recipe) -> Path:
    """Return the file of a CLIP's weights, from the disk, the hub's cache, or downloaded.

    Raises:
        WeightsError: it is not here and cannot be downloaded; the message names file, address and how to use it.
    """
    if source.kind in ("folder", "transformers"):
        return Path(source.file) if source.file else weights_in(Path(source.path))
    if source.path:
        return Path(source.path)
    return Path(_fetch(name, source, recipe.published))


def load_weights(model: nn.Module, path: Path, name: str, source: Source) -> None:
    """Put the tensors of a checkpoint in place of a model's parameters, each in the type of the parameter.

    Raises:
        WeightsError: they do not fit the architecture, or the file cannot be read.
    """
    state, architecture = read_state_dict(path), source.architecture or name
    try:
        state = _adapt(state, model)
        _check_positions(state, model, path, name, source)
        _interpolate(state, model)
        wanted = {key: value.dtype for key, value in model.state_dict().items()}
        for key in state:  # one at a time, so that no second copy of all is there at any moment
            if key in wanted and state[key].is_floating_point():
                state[key] = state[key].to(wanted[key])
        model.load_state_dict(state, assign=True)
    except WeightsError:
        raise
    except Exception as error:  # of many kinds: a tensor is missing or of another shape
        raise WeightsError(
            f"'{path}' cannot be loaded as {architecture} ({short_reason(error)}: {' '.join(str(error).split())[-200:]}). "
            "Expected a checkpoint of this open_clip architecture that holds tensors alone."
        ) from error
    model.requires_grad_(False)


def _adapt(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Rename and reshape the tensors of older and foreign checkpoints as open_clip's own loading does."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    for key in ("input_resolution", "context_length", "vocab_size"):  # of OpenAI's archives
        state.pop(key, None)
    state = convert_state_dict(model, from_transformers(state) if is_transformers(state) else state)
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for key in ("logit_scale", "logit_bias"):
        own = getattr(model, key)
        if key in state and own is not None and state[key].shape != own.shape:
            state[key] = state[key].reshape(own.shape)
    if "logit_bias" not in state and model.logit_bias is not None:
        state["logit_bias"] = torch.zeros_like(state["logit_scale"])
    if hasattr(model, "text") and not hasattr(model.text, "positional_embedding"):
        state.pop("text.transformer.embeddings.position_ids", None)  # of older transformers
    return state


def _check_positions(state: dict[str, Tensor], model: nn.Module, path: Path, name: str, source: Source) -> None:
    """Refuse a file of another resolution or context length than its name says; of a folder or a download print it.

    Raises:
        WeightsError: an architecture was named, and the file holds weights of another.
    """
    own = {key: value for key, value in model.named_parameters() if key in _POSITIONS}
    for key, value in own.items():
        if key not in state or state[key].shape == value.shape or state[key].shape[1:] != value.shape[1:]:
            continue
        there, here = (_in_words(key, len(positions), model) for positions in (state[key], value))
        if source.kind == "open_clip" and source.path:
            raise WeightsError(
                f"'{path}' holds weights for {there}, and {source.architecture} takes {here}: they are not those that '{name}' "
                "names. Give the architecture that they were trained as, or a folder with their open_clip_config.json."
            )
        print(f"'{name}' takes {here}, its weights are for {there}: their positions are interpolated, as open_clip does")


def _in_words(key: str, positions: int, model: nn.Module) -> str:
    if key != _POSITIONS[0]:
        return f"texts of {positions} tokens"
    side = round((positions - 1) ** 0.5) * model.visual.patch_size[0]
    return f"images of {side} x {side} pixels"


def _interpolate(state: dict[str, Tensor], model: nn.Module) -> None:
    from open_clip.model import resize_pos_embed, resize_text_pos_embed

    if not hasattr(model, "text") or hasattr(model.text, "positional_embedding"):
        resize_text_pos_embed(state, model)
    resize_pos_embed(state, model)


def cached_weights(published: dict) -> str:
    """Return the file of a weights tag that was downloaded before; empty if there is none."""
    from huggingface_hub import try_to_load_from_cache

    repository, candidates = _on_the_hub(published)
    if not repository:
        file = Path("~/.cache/clip").expanduser() / os.path.basename(published.get("url", ""))  # open_clip's own place
        return str(file) if file.is_file() else ""
    found = (try_to_load_from_cache(repository, candidate) for candidate in candidates)
    return next((path for path in found if isinstance(path, str)), "")


def _on_the_hub(published: dict) -> tuple[str, list[str]]:
    """Return the repository of a weights tag, empty if it is elsewhere, and the names that its file may have."""
    repository, file = os.path.split(published.get("hf_hub", ""))
    return repository, [file] if file else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]


def _fetch(name: str, source: Source, published: dict) -> str:
    """Return the file of a weights tag, from the cache or downloaded."""
    import open_clip
    from huggingface_hub import hf_hub_download, hf_hub_url

    repository, candidates = _on_the_hub(published)
    if not repository:
        try:
            return open_clip.download_pretrained(published)
        except (OSError, RuntimeError) as error:
            raise WeightsError(_help(name, source, published["url"], error)) from error
    if cached := cached_weights(published):
        return cached
    error: Exception | None = None
    for candidate in candidates:
        url = hf_hub_url(repository, candidate)
        try:  # one quick question first: the hub's client retries for most of a minute where there is no network
            urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=20).close()
            with checked_answers():
                return hf_hub_download(repository, candidate)
        except Exception as e:
            error = e
    raise WeightsError(_help(name, source, hf_hub_url(repository, candidates[-1]), error)) from error


def _help(name: str, source: Source, url: str, error: object) -> str:
    file = url.rpartition("/")[2]
    return (
        f"The weights of '{name}' are not here and cannot be downloaded ({error}). Get the file '{file}' from {url}, put it "
        f"anywhere, and write '{source.architecture}:{source.tag}:/path/{file}' in place of the name."
    )
