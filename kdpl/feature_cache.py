"""Text features kept on disk: a teacher's over a vocabulary, and a student's prompt ensembles by class name.

Each file is a safetensors file whose metadata holds the key it was computed for and a digest of its values. A key is
a hash of everything the features depend on: the text tower's design and weights, the sentences, the format. What does
not match is computed again, never trusted. Files appear whole or not at all, so that any number of runs may share a
cache.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from kdpl.clips import Clip
from kdpl.files import atomic_write
from kdpl.paths import cache_dir
from kdpl.prompts import SENTENCES_AT_ONCE, ensemble_features, sentence_features
from kdpl.templates import fill

FORMAT = 1  # of the files; raised whenever other features come out of the same key
NAMES_PER_SHARD = 1000  # new names of an ensemble after which they are written


class _UnusableFile(Exception):
    """A file of the cache is damaged or belongs to something else."""


def cached_text_features(clip: Clip, names: list[str], template: str, progress: bool = True) -> Tensor:
    """Return the normalised text features `(V, d)` of names in a template, from the cache or computed and kept there.

    They are kept in full precision, so that a run that finds them sees the very values of the run that computed them;
    half precision would move the published losses by more than 1e-4.

    Args:
        clip: a teacher; the features are on its device, in fp32.
        names: a vocabulary.
        template: a sentence with `{}` for the name.
        progress: show a progress bar while computing, where somebody watches (on a terminal).
    """
    key = _key(weights_digest(clip), template, names)
    path = _folder() / f"{key}.safetensors"
    features = _features_on_disk(path, key, (len(names), clip.embed_dim))
    if features is None:
        print(f"Computing the text features of {len(names):,} names, once for this teacher and template")
        starts = range(0, len(names), SENTENCES_AT_ONCE)
        with _own_precision(clip):
            chunks = [
                sentence_features(clip, fill(template, names[i : i + SENTENCES_AT_ONCE])).cpu()
                for i in tqdm(starts, desc="text features", disable=None if progress else True)
            ]
        features = torch.cat(chunks)  # (V, d)
        _write(path, key, features)
    return features.to(clip.device)


class CachedEnsemble:
    """The normalised mean over templates of a frozen CLIP's unnormalised text features, by class name.

    Names are computed when they are first asked for, and kept on disk in shards: a file for what one run found new,
    written every `NAMES_PER_SHARD` names and at `flush`.

    Args:
        clip: the frozen CLIP.
        templates: sentences with `{}` for the name.
    """

    def __init__(self, clip: Clip, templates: Sequence[str]):
        self.clip, self.templates = clip, list(templates)
        self._rows: dict[str, int] = {}  # of the table, by name
        self._table: Tensor | None = None  # (capacity, d) fp32; grown by doubling
        self._unwritten: list[str] = []

    def __call__(self, names: Sequence[str]) -> Tensor:
        """Return the features `(C, d)` of these names, in fp32."""
        if self._table is None:
            self._table = torch.empty(0, self.clip.embed_dim, device=self.clip.device)
            self._key = _key(weights_digest(self.clip), self.templates, [])
            self._read_shards()
        new = [n for n in dict.fromkeys(names) if n not in self._rows]
        if new:
            with _own_precision(self.clip):
                self._add(new, ensemble_features(self.clip, new, self.templates, normalize=False))
            self._unwritten += new
            if len(self._unwritten) >= NAMES_PER_SHARD:
                self.flush()
        return self._table[torch.tensor([self._rows[n] for n in names], device=self._table.device)]

    def flush(self) -> None:
        """Write the names that are not on disk yet, as one shard."""
        if self._unwritten:
            features = self._table[[self._rows[n] for n in self._unwritten]].cpu()
            path = self._folder() / f"{_key(self._unwritten)}.safetensors"
            _write(path, self._key, features, self._unwritten)
            self._unwritten = []

    def _folder(self) -> Path:
        return _folder() / self._key

    def _add(self, names: list[str], features: Tensor) -> None:
        first, last = len(self._rows), len(self._rows) + len(names)
        if last > len(self._table):
            grown = self._table.new_empty(max(last, 2 * len(self._table)), self._table.shape[1])
            grown[:first] = self._table[:first]
            self._table = grown
        self._table[first:last] = features
        self._rows.update(zip(names, range(first, last), strict=True))

    def _read_shards(self) -> None:
        for path in sorted(self._folder().glob("*.safetensors")):
            try:
                features, names = _read(path, self._key)
                if features.shape != (len(names), self._table.shape[1]):
                    raise _UnusableFile(f"features {tuple(features.shape)} of {len(names)} names")
            except FileNotFoundError:
                continue
            except _UnusableFile as error:
                print(f"Cached features {path} are not usable ({error}): deleted, computed again where needed")
                path.unlink(missing_ok=True)
                continue
            new = [i for i, n in enumerate(names) if n not in self._rows]  # runs at the same time may have found the same
            self._add([names[i] for i in new], features[new].to(self._table.device))


def weights_digest(clip: Clip, tower: str = "text") -> str:
    """Return a digest of the text or the image tower of a CLIP: its design, and types, shapes and values of its parameters."""
    image, digest = tower == "image", hashlib.sha256()
    for name, module in clip.model.named_modules():
        if name.startswith("visual") == image:  # activations and heads change the features and have no weights
            digest.update(f"{name} {type(module).__name__} {getattr(module, 'num_heads', '')}\n".encode())
    weights = [*clip.model.named_parameters(), *(clip.model.visual.named_buffers("visual") if image else ())]
    for name, value in weights:
        if name.startswith("visual") == image and not name.startswith("logit_"):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(_bytes(value))
    return digest.hexdigest()


def _bytes(value: Tensor) -> memoryview:
    return memoryview(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


def _own_precision(clip: Clip) -> torch.autocast:
    """Outside the caller's autocast, features depend on the weights' precision alone, which the key holds."""
    return torch.autocast(clip.device.type, enabled=False)


def _key(*parts: object) -> str:
    return hashlib.sha256(json.dumps([FORMAT, *parts]).encode()).hexdigest()[:32]


def _folder() -> Path:
    return cache_dir() / "text_features"


def _features_on_disk(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    try:
        features, _ = _read(path, key)
        if features.shape != shape:
            raise _UnusableFile(f"shape {tuple(features.shape)}, expected {shape}")
        return features
    except FileNotFoundError:
        return None
    except _UnusableFile as error:
        print(f"Cached text features {path} are not usable ({error}): computing them again")
        return None


def _read(path: Path, key: str) -> tuple[Tensor, list[str]]:
    """Return the features and names of a file of the cache.

    Raises:
        FileNotFoundError: there is none.
        _UnusableFile: it cannot be read, was written for another key, or its values are not those that were written.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata, features = file.metadata() or {}, file.get_tensor("features")
        names = json.loads(metadata.get("names", "[]"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise _UnusableFile(f"{error or type(error).__name__}") from None
    if metadata.get("key") != key:
        raise _UnusableFile("written for other weights, sentences or names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise _UnusableFile("its names are none")
    if features.dtype != torch.float32:
        raise _UnusableFile(f"of {features.dtype}, expected torch.float32")
    if metadata.get("sha256") != hashlib.sha256(_bytes(features)).hexdigest():
        raise _UnusableFile("its values have changed")
    if features.dim() != 2 or not torch.isfinite(features).all():
        raise _UnusableFile("not a matrix of finite numbers")
    return features, names


def _write(path: Path, key: str, features: Tensor, names: Sequence[str] = ()) -> None:
    """Write a file of the cache; where that is impossible the run goes on without."""
    metadata = {"key": key, "sha256": hashlib.sha256(_bytes(features)).hexdigest(), "names": json.dumps(list(names))}
    data = save({"features": features.contiguous()}, metadata)
    try:
        with atomic_write(path) as file:
            file.write(data)
    except OSError as error:
        print(f"The text features are not kept, because {path} cannot be written: {error}")
