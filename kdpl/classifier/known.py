"""Image features that were computed before, found by the content of the file.

The folder of a cache belongs to everything that the features depend on beside the file: weights, learned image prompts,
preprocessing, precision, and the libraries that decode.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
from torch import Tensor

from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import Preprocessing
from kdpl.common.files import cache_dir
from kdpl.common.rows import KEY_BYTES, RowStore, store_folder

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier


class ImageFeatureCache:
    """The normalised image features (d) of one image tower on disk, by content.

    Args:
        meaning: what the features depend on beside the content; other values never meet.
        width: d.
        folder: of all caches; by default `image_features` in the cache folder.
    """

    def __init__(self, meaning: dict[str, Any], width: int, folder: str | Path | None = None):
        libraries = {"pillow": PIL.__version__, "torch": torch.__version__}
        self.width = width
        root = Path(folder) if folder else cache_dir() / "image_features"
        self._store = RowStore(store_folder(root, {**meaning, **libraries}), width, "float32")
        self._row_of = {key: (shard, row) for shard, found in self._store.find() for key, row in found}
        self._broken = False
        self._new: set[bytes] = set()  # added by this process
        self.hits = 0  # features of earlier processes that were used

    @staticmethod
    def key(content: bytes) -> bytes:
        return hashlib.blake2b(content, digest_size=KEY_BYTES).digest()

    def __contains__(self, key: bytes) -> bool:
        return key in self._row_of

    def get(self, keys: Sequence[bytes]) -> Tensor:
        """Return the features (N, d) of known images."""
        self.hits += sum(key not in self._new for key in keys)
        rows = [shard["value"][row] for shard, row in map(self._row_of.__getitem__, keys)]
        return torch.from_numpy(np.stack(rows))

    def add(self, keys: Sequence[bytes], features: Tensor) -> None:
        """Write the features (N, d) of new images; if that is impossible, a note is printed and the run continues without."""
        if self._broken:
            return
        try:
            first = self._store.append(keys, features.float().cpu().numpy())
        except OSError as error:
            self._broken = True
            print(f"The image features are not cached, because '{self._store.folder}' cannot be written: {error}")
            return
        shard = self._store.own_shard()
        if len(shard) < first + len(keys):  # somebody has removed the cache
            self._broken = True
            return
        self._new.update(keys)
        self._row_of.update((key, (shard, first + i)) for i, key in enumerate(keys))


def meaning_of(clip: Clip, preprocessing: Preprocessing, prompts: str = hashlib.sha256().hexdigest()) -> dict[str, Any]:
    """Return what the image features of a CLIP depend on beside the content of the file.

    Args:
        prompts: a digest of learned prompts in the image tower; by default there are none.
    """
    return {
        "CLIP": clip.identity,
        "image prompts": prompts,
        "preprocessing": dataclasses.asdict(preprocessing),
        "precision": [str(clip.dtype), str(clip.autocast_dtype), str(clip.frozen_autocast_dtype)],
        "device": clip.device.type,
    }


class FeatureCaches:
    """The caches of a classifier's image features, one for each size at which JPEGs may be decoded.

    Args:
        classifier: whose features they are.
        folder: of all caches; None: `image_features` in the cache folder.
    """

    def __init__(self, classifier: "Classifier", folder: str | Path | None = None):
        encoder, bundle, clip = classifier.encoder, classifier.bundle, classifier.clip
        learned = {} if encoder.images_are_frozen else bundle.parameters
        prompts = hashlib.sha256(b"" if encoder.images_are_frozen else bundle.variant.encode())
        for name, value in sorted(learned.items()):
            prompts.update(f"{name} {tuple(value.shape)}".encode() + value.contiguous().numpy().tobytes())
        self._meaning = meaning_of(clip, bundle.preprocessing, prompts.hexdigest())
        self._width, self._folder = clip.embed_dim, folder
        self._caches: dict[int, ImageFeatureCache] = {}

    def __call__(self, least: int) -> ImageFeatureCache:
        """Return the cache of images decoded with `Decoder.least`."""
        if least not in self._caches:
            self._caches[least] = ImageFeatureCache({**self._meaning, "least": least}, self._width, self._folder)
        return self._caches[least]
