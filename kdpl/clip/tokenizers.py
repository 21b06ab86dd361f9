"""The tokenizers of open_clip's models: CLIP's byte-pair encoding, and those of the Hugging Face hub."""

import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.clip.files import WeightsError
from kdpl.clip.inputs import Tokenizer
from kdpl.clip.openai import BytePairs
from kdpl.common.messages import short_reason

_PROBE = "a"
_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")


def needs_transformers(name: str, what: str, repository: str) -> None:
    """Refuse a CLIP that needs the package transformers where it is not installed.

    Raises:
        WeightsError: it is not.
    """
    if importlib.util.find_spec("transformers") is None:
        raise WeightsError(
            f"The {what} of '{name}', '{repository}' on the Hugging Face hub, needs the package transformers: "
            "pip install 'kdpl[hf]'."
        )


def hub_help(name: str, what: str, repository: str, error: BaseException) -> str:
    """Return that files of a hub's repository are missing, and how they get here."""
    from huggingface_hub import constants

    folder = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    return (
        f"The {what} of '{name}', '{repository}' on the Hugging Face hub, is not here and cannot be downloaded "
        f"({short_reason(error)}). Where there is a network run \"hf download {repository} --exclude '*.bin' '*.safetensors' "
        f"'*.h5' '*.msgpack' '*.onnx'\" and copy the folder '{folder.name}' of its cache to '{folder}'."
    )


def tokenizer_of(name: str, text: Mapping[str, Any], folder: str) -> Tokenizer:
    """Return the tokenizer of a text tower's configuration.

    Args:
        folder: of the model, which may have the files of its tokenizer; empty: they are in the hub's cache.

    Raises:
        WeightsError: it needs a package or files that are not here; the message says which.
    """
    options = dict(text.get("tokenizer_kwargs") or {})
    length = text.get("context_length", 77)
    repository = text.get("hf_tokenizer_name") or ""
    if not repository:
        from open_clip.tokenizer import SimpleTokenizer

        return BytePairs(length, SimpleTokenizer(context_length=length, **options))
    needs_transformers(name, "tokenizer", repository)
    settings = length, text.get("tokenizer_mode") or "", tuple(options.items())
    in_folder = folder if any(Path(folder, file).is_file() for file in _FILES) else ""
    if here := in_folder or _cached(repository):
        with suppress(Exception):  # of many kinds, if some of the files are missing
            return _hub_tokenizer(here, *settings)
    try:
        return _hub_tokenizer(repository, *settings)
    except Exception as error:  # of many kinds, from inside transformers
        raise WeightsError(hub_help(name, "tokenizer", repository, error)) from error


def _cached(repository: str) -> str:
    """Return the folder of the hub's cache that has a repository's tokenizer, or nothing.

    By the repository's name transformers asks for files that a tokenizer need not have, and fails without a network.
    """
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(repository, file) for file in _FILES)
    return next((str(Path(path).parent) for path in found if isinstance(path, str)), "")


@lru_cache(maxsize=8)
def _hub_tokenizer(source: str, context_length: int, mode: str, options: tuple) -> "HubTokenizer":
    return HubTokenizer(source, context_length, mode, dict(options))


class HubTokenizer(Tokenizer):
    """A tokenizer of the Hugging Face hub, as open_clip prepares its texts and ids.

    Args:
        source: repository or folder.
        mode: open_clip's tokenizer_mode.

    Raises:
        ValueError: it pads in front, or the ids of a text are not those of the text between fixed ones.
    """

    def __init__(self, source: str, context_length: int, mode: str, options: dict[str, Any]):
        from open_clip.tokenizer import HFTokenizer

        self._tokenizer = HFTokenizer(source, context_length=context_length, tokenizer_mode=mode, **options)
        self._inner = self._tokenizer.tokenizer
        self.context_length = context_length
        self.special = frozenset(self._inner.all_special_ids) - {self._inner.unk_token_id}
        self.pad = 0 if self._inner.pad_token_id is None else self._inner.pad_token_id
        plain, ids = self.encode(_PROBE), self._tokenizer([_PROBE])[0].tolist()
        whole = self._inner(_PROBE).input_ids
        start = next((i for i in range(len(ids)) if ids[i : i + len(plain)] == plain), None)
        end = len(ids) - next((i for i, token in enumerate(reversed(ids)) if token != self.pad), 0)
        if start is None or mode:
            raise ValueError(f"the tokenizer '{source}' (mode '{mode}') puts '{_PROBE}' at no fixed place in {ids}")
        self.sot, self.eot = tuple(ids[:start]), tuple(ids[start + len(plain) : end])
        if self.pad in self.sot:
            raise ValueError(f"the tokenizer '{source}' pads in front of the text: {ids}")
        self.stripped = len(whole) - len(self.sot) - len(plain) - len(self.eot)

    def encode(self, text: str) -> list[int]:
        return self._inner(self._tokenizer.clean_fn(text), add_special_tokens=False).input_ids

    def decode(self, token: int) -> str:
        return self._inner.decode([token]).strip()

    def vocabulary(self) -> Mapping[str, int]:
        return self._inner.get_vocab()

    def __call__(self, texts: list[str]) -> Tensor:
        for text in texts:
            self.check_length(text, len(self.sot) + len(self.encode(text)) + len(self.eot))
        return torch.as_tensor(self._tokenizer(texts))
