"""The inputs of a CLIP: how an image becomes pixels, how a sentence becomes token ids, and how tensors get to its device."""

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.clip.weights import WeightsError, openai_clip
from kdpl.common.messages import short_reason, shorten
from kdpl.config.keys import INTERPOLATIONS

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)
RESIZE_MODES = ("shortest", "squash")
LARGEST_SIDE = 4096  # of an image tower's input
PROBES = (  # texts that tokenizers prepare in different ways
    "a photo of a Golden Retriever, a type of dog.",
    "IT'S  42\n&amp; 3,000!",
    "cr\u00e8me br\u00fbl\u00e9e \u2014 \u0130stanbul",
    "don't; (x) [y] #z snow-man_1 \u2603 \u72ac",
)
VOCABULARY, SOT, EOT = 49408, 49406, 49407  # of CLIP's byte-pair encoding
_PROBE = "a"


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of an image tower: resized, RGB in 0..1 normalised.

    The resize mode "shortest" resizes the shorter edge and cuts out the centre, "squash" resizes both edges to `size`.
    """

    size: tuple[int, int]  # height and width
    interpolation: str = "bicubic"  # "bicubic", "bilinear" or "nearest"
    mean: tuple[float, float, float] = OPENAI_MEAN
    std: tuple[float, float, float] = OPENAI_STD
    resize_mode: str = "shortest"

    def resize_steps(self) -> list[Callable]:
        """Return the transforms from a PIL image of any size to a PIL image of `size`."""
        import torchvision.transforms as T

        mode = T.InterpolationMode(self.interpolation)
        if self.resize_mode == "squash":
            return [T.Resize(self.size, mode)]
        return [T.Resize(max(self.size), mode), T.CenterCrop(self.size)]


def checked_preprocessing(content: Mapping[str, Any]) -> Preprocessing:
    """Return the preprocessing that a file describes; what it leaves out is OpenAI's.

    Args:
        content: `size`, one side or height and width, and the other attributes of `Preprocessing`.

    Raises:
        ValueError: no image can be prepared so; the message names the key, the value and what was expected.
    """
    defaults = {"mode": "RGB", "interpolation": "bicubic", "resize_mode": "shortest", "mean": OPENAI_MEAN, "std": OPENAI_STD}
    given = {**defaults, **{key: value for key, value in content.items() if value is not None}}
    if not isinstance(given["size"], (list, tuple)):
        given["size"] = [given["size"]] * 2
    for key, names in (("mode", ("RGB",)), ("interpolation", INTERPOLATIONS), ("resize_mode", RESIZE_MODES)):
        if given[key] not in names:
            raise ValueError(f"'{key}' of the preprocessing is {shorten(given[key])}, expected {' or '.join(names)}")
    for key, count, low, high in (("size", 2, 1, LARGEST_SIDE), ("mean", 3, -10, 10), ("std", 3, 0.001, 10)):
        values, kinds = given[key], (int,) if key == "size" else (int, float)
        sound = isinstance(values, (list, tuple)) and all(type(x) in kinds and low <= x <= high for x in values)
        if not sound or len(values) != count:
            raise ValueError(f"'{key}' of the preprocessing is {shorten(values)}, expected {count} numbers of {low} to {high}")
    mean, std = (tuple(map(float, given[key])) for key in ("mean", "std"))
    return Preprocessing(tuple(given["size"]), given["interpolation"], mean, std, given["resize_mode"])


def moved(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on a device, without waiting for it: to a GPU it is copied from pinned memory."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def index_on(device: torch.device, values: Sequence) -> Tensor:
    """Return whole numbers, or nested lists of them, as an index on a device, without waiting for it."""
    return moved(torch.tensor(values, dtype=torch.long), device)


class Tokenizer:
    """Sentences to token ids `[*sot, ..., *eot, pad, pad, ...]` of one length.

    Subclasses give `encode` and `decode`.

    Attributes:
        context_length: ids of a sentence.
        sot, eot: ids before and behind those of the text; either may be empty.
        pad: the id that fills up.
        stripped: ids that the model's own tokenizer counts, then replaces by padding.
        special: ids that no text may contain.
    """

    context_length: int
    sot: tuple[int, ...]
    eot: tuple[int, ...]
    pad: int = 0
    stripped: int = 0
    special: frozenset[int] = frozenset()

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without `sot` and `eot`."""
        raise NotImplementedError

    def decode(self, token: int) -> str:
        """Return the text of one id."""
        raise NotImplementedError

    @cached_property
    def digest(self) -> str:
        """A digest of the ids that it gives to texts that tokenizers prepare in different ways."""
        facts = [self.context_length, self.sot, self.eot, self.pad, self.stripped, *map(self.encode, PROBES)]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def __call__(self, texts: list[str]) -> Tensor:
        """Return the ids `(N, context_length)` of sentences.

        Raises:
            ValueError: a sentence is longer than the context.
        """
        ids = torch.full((len(texts), self.context_length), self.pad, dtype=torch.long)
        for i, text in enumerate(texts):
            tokens = [*self.sot, *self.encode(text), *self.eot]
            if (count := len(tokens) + self.stripped) > self.context_length:
                raise ValueError(f"'{text}' has {count} tokens, the text tower takes {self.context_length}: shorten it.")
            ids[i, : len(tokens)] = torch.tensor(tokens)
        return ids


class BytePairs(Tokenizer):
    """CLIP's byte-pair encoding.

    Args:
        simple: a `SimpleTokenizer` of OpenAI's package, by default, or of open_clip.
    """

    def __init__(self, context_length: int = 77, simple: Any = None):
        self.context_length, self._simple = context_length, simple
        self.sot, self.eot, self.special = (SOT,), (EOT,), frozenset(getattr(simple, "all_special_ids", (SOT, EOT)))

    @property
    def simple(self) -> Any:
        return self._simple or openai_clip().clip._tokenizer  # late: `kdpl` is imported without OpenAI's package

    def encode(self, text: str) -> list[int]:
        return self.simple.encode(text)

    def decode(self, token: int) -> str:
        return self.simple.decode([token]).strip()


class HubTokenizer(Tokenizer):
    """A tokenizer of the Hugging Face hub, as open_clip prepares its texts and ids.

    Args:
        source: repository or folder.
        mode, options: open_clip's tokenizer_mode and tokenizer_kwargs.

    Raises:
        ValueError: it pads in front, or the ids of a text are not those of the text between fixed ones.
    """

    def __init__(self, source: str, context_length: int, mode: str, options: Sequence[tuple[str, Any]]):
        from open_clip.tokenizer import HFTokenizer

        self._tokenizer = HFTokenizer(source, context_length=context_length, tokenizer_mode=mode, **dict(options))
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


_hub_tokenizer = lru_cache(maxsize=8)(HubTokenizer)


def missing_part(name: str, what: str, repository: str, error: BaseException) -> WeightsError:
    """Return the error that a part of a CLIP on the Hugging Face hub is not here, with what to do."""
    from huggingface_hub import constants

    what = f"The {what} of '{name}', '{repository}' on the Hugging Face hub,"
    if importlib.util.find_spec("transformers") is None:
        return WeightsError(f"{what} needs the package transformers: pip install 'kdpl[hf]'.")
    folder = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    return WeightsError(
        f'{what} is not here and cannot be downloaded ({short_reason(error)}). Where there is a network run "hf download '
        f"{repository} --include '*.json' '*.txt' '*.model'\" and copy the folder '{folder.name}' of its cache to '{folder}'."
    )


def tokenizer_of(name: str, text: Mapping[str, Any], folder: str) -> Tokenizer:
    """Return the tokenizer of a text tower's configuration.

    Args:
        folder: of the model, which may have the files of its tokenizer; empty: they are in the hub's cache.

    Raises:
        WeightsError: it needs a package or files that are not here; the message says which.
    """
    options = dict(text.get("tokenizer_kwargs") or {})
    length, repository = text.get("context_length", 77), text.get("hf_tokenizer_name") or ""
    if not repository:
        from open_clip.tokenizer import SimpleTokenizer

        return BytePairs(length, SimpleTokenizer(context_length=length, **options))
    from huggingface_hub import snapshot_download

    sources = [repository]
    with suppress(Exception):  # it is not in the cache. By its name transformers asks for files that it need not have
        sources.insert(0, snapshot_download(repository, local_files_only=True))
    if any(Path(folder, file).is_file() for file in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "spiece.model")):
        sources.insert(0, folder)
    for source in sources:
        try:
            return _hub_tokenizer(source, length, text.get("tokenizer_mode") or "", tuple(options.items()))
        except Exception as error:  # of many kinds, from inside transformers, if some of the files are missing
            problem = error
    raise missing_part(name, "tokenizer", repository, problem) from problem
