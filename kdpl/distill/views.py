"""Features of frozen towers for the fixed views of a training set, computed once and cached in memory and on disk."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import PIL
import torch
import torchvision
from torch import Tensor

from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import moved
from kdpl.common import distributed
from kdpl.common.files import file_key, key_of, name_below
from kdpl.common.tensor_files import FeatureFile, file_digests

if TYPE_CHECKING:
    from kdpl.training.batches import EpochLoader


@dataclass(frozen=True)
class ImageFile:
    """The identity of an image: its name in the data set, by which its views are drawn, and a digest of its file's content."""

    name: str
    content: str
    path: str = field(default="", compare=False)
    file: bytes | None = field(default=None, compare=False, repr=False)  # its `file_key` before the digest was taken

    def key(self, view: int) -> bytes:
        return key_of(self.name, self.content, view)

    def is_unchanged(self) -> bool:
        """Whether the file is the one that the digest was taken of."""
        return self.file is None or (os.path.isfile(self.path) and file_key(self.path) == self.file)


def image_files(paths: Sequence[str], root: str | os.PathLike) -> list[ImageFile]:
    """Return the identities of a data set's images, whose names are their paths below `root`.

    Raises:
        OSError: one is missing or cannot be read.
    """
    try:
        keys = [file_key(path) for path in paths]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No image at '{error.filename}'. Check DATASET.ROOT.") from None
    digests = file_digests(paths, keys)
    return [ImageFile(name_below(p, root), d.hex(), p, k) for p, d, k in zip(paths, digests, keys, strict=True)]


def images_digest(items: Sequence[Any], files: Sequence[ImageFile], labelled: bool) -> str:
    """Return how many images there are, and a digest of their names, contents and, with labels, labels in order."""
    rows = [[file.name, file.content, item.label if labelled else 0] for file, item in zip(files, items, strict=True)]
    return f"{len(items)} ({key_of(rows).hex()})"


def pool_facts(dataset: Any, root: str | os.PathLike) -> dict[str, str]:
    """Return a digest of the images that a data set drew its training images from, `drawn_from`: names, sizes and labels."""
    pool = getattr(dataset, "drawn_from", None)
    files = [ImageFile(name_below(item.impath, root), f"{os.path.getsize(item.impath)} bytes") for item in pool or ()]
    return {"drawn from": images_digest(pool, files, True)} if pool else {}


class FeatureTable:
    """Features `(d,)` by image and view: those found in a file, and those added since.

    Args:
        images: the training set (N).
        views: V, the number of views per image.
        width: d.
        dtype: float16 or float32; features are rounded to it, so that they are the same in memory and on disk.
        store: the cache on disk; None: memory only.
    """

    def __init__(
        self, images: Sequence[ImageFile], views: int, width: int, dtype: torch.dtype, store: FeatureFile | None = None
    ):
        self.images, self.views, self.dtype, self.store = images, views, dtype, store
        self.known = torch.zeros(len(images), views, dtype=torch.bool)
        self.values = torch.empty(len(images) * views, width, dtype=dtype)  # (N * V, d); pages not written take no memory
        self._later: list[tuple[Tensor, Tensor, Tensor, bool, torch.cuda.Event]] = []
        if store is not None:
            keys = [image.key(view) for image in images for view in range(views)]
            found = [row for row, key in enumerate(keys) if key in store]
            self.values[found] = store.get([keys[row] for row in found])
            self.known.view(-1)[found] = True

    @property
    def missing(self) -> int:
        """The number of features that are not known."""
        self.settle()
        return int((~self.known).sum())

    def get(self, index: Tensor, view: Tensor) -> Tensor:
        """Return the features `(B, d)` on the CPU; those that are not known are NaN."""
        self.settle()
        features = self.values[index * self.views + view]
        features[~self.known[index, view]] = torch.nan
        return features

    def put(self, index: Tensor, view: Tensor, features: Tensor, on_disk: bool = True) -> None:
        """Add features `(B, d)`; those that are not finite are left out. Not `on_disk`: in memory alone."""
        finite = torch.isfinite(features).all(1)
        index, view, features = index[finite], view[finite], features[finite].to(self.dtype)
        self.values[index * self.views + view] = features
        self.known[index, view] = True
        if self.store is not None and on_disk:
            pairs = zip(index.tolist(), view.tolist(), strict=True)
            keys = [(row, self.images[i].key(v)) for row, (i, v) in enumerate(pairs) if self.images[i].is_unchanged()]
            self.store.add([key for _, key in keys], features[[row for row, _ in keys]])

    def put_later(self, index: Tensor, view: Tensor, features: Tensor, on_disk: bool = True) -> None:
        """As `put`, with features of a GPU: they are copied while it works on, and in the table when it is next asked."""
        copy = torch.empty(features.shape, dtype=self.dtype, pin_memory=True)
        copy.copy_(features.to(self.dtype), non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        self._later.append((index, view, copy, on_disk, copied))

    def settle(self) -> None:
        """Add what `put_later` has left for later."""
        later, self._later = self._later, []
        for *features, copied in later:
            if not copied.query():
                copied.synchronize()
            self.put(*features)

    def save(self) -> None:
        """Write all added features to disk, if there is a store."""
        self.settle()
        if self.store is not None:
            self.store.save()


class ViewFeatures:
    """A frozen tower's features of views, computed when a view is first seen.

    Args:
        compute: maps normalised images `(n, 3, H, W)` to features `(n, d)`.
        table: stores the features.
        chunk: number of images computed together. Smaller chunks are padded with blank images, so that an image's feature is
            bit-identical whatever else is in the batch.
        device: of the returned features.
    """

    def __init__(self, compute: Callable[[Tensor], Tensor], table: FeatureTable, chunk: int, device: torch.device):
        self.compute, self.table, self.chunk, self.device = compute, table, chunk, device

    def missing(self, index: Tensor, view: Tensor) -> Tensor:
        """Return a mask `(B,)` of the images whose features are not known, so that their pixels are needed."""
        self.table.settle()
        return ~self.table.known[index, view]

    def agree(self) -> None:
        """Forget features that not every rank has found, so that all ranks know the same; only rank 0 writes to disk."""
        if distributed.world() > 1:
            self.table.known &= distributed.total(self.table.known.int()) == distributed.world()
            if not distributed.is_main():
                self.table.store = None

    def __call__(self, batch: dict[str, Any], pixels: Tensor | None) -> Tensor:
        """Return the features `(B, d)` in fp32.

        Args:
            batch: of an `EpochLoader` with views.
            pixels: normalised images `(len(batch["rows"]), 3, H, W)`; None if nothing is missing.
        """
        index, view = batch["index"], batch["view"]
        missing = self.missing(index, view).nonzero().squeeze(1)
        new = self._computed(pixels, torch.searchsorted(batch["rows"], missing))
        if self.device.type == "cpu" or distributed.world() > 1:
            self._put_for_all(batch, new.cpu())
            return moved(self.table.get(index, view), self.device).float()
        features = moved(self.table.get(index, view), self.device)  # (B, d), NaN where they are missing
        if len(missing):
            features[moved(missing, self.device)] = new.to(features.dtype)
            self.table.put_later(index[missing], view[missing], new, on_disk=not _replaced(batch))
        return features.float()

    def _computed(self, pixels: Tensor | None, rows: Tensor) -> Tensor:
        """Return the features `(n, d)` of the images in some rows of `pixels`, in fp32, on the device."""
        found = [torch.empty(0, self.table.values.shape[1], device=self.device)]
        for some in rows.split(self.chunk) if len(rows) else ():
            images = pixels[moved(some, self.device)]
            blank = images.new_zeros(self.chunk - len(images), *images.shape[1:])
            found.append(self.compute(torch.cat([images, blank]))[: len(some)].float())
        return torch.cat(found)

    def _put_for_all(self, batch: dict[str, Any], features: Tensor) -> None:
        """Add the features that this and the other ranks have computed, in the order of the whole batch."""
        index, view = batch["all_index"], batch["all_view"]
        missing = self.missing(index, view)
        if missing.any():
            counts = [int(part.sum()) for part in missing.split(batch["counts"])]
            replaced = distributed.any_rank(_replaced(batch))
            self.table.put(index[missing], view[missing], distributed.gather_rows(features, counts), on_disk=not replaced)


def _replaced(batch: dict[str, Any]) -> bool:
    """Whether an image of a batch could not be read, so that the features are those of another one in its place."""
    return any(batch.get("unreadable", ()))


def view_features(
    clip: Clip,
    compute: Callable[[Tensor], Tensor],
    loader: "EpochLoader",
    images: Sequence[ImageFile],
    folder: str,
    pixels: object,
    prompts: str = "",
) -> ViewFeatures:
    """Return a frozen tower's features of a training set's views, including those in a cache on disk.

    Args:
        clip: the CLIP of the tower.
        compute: maps normalised images `(n, 3, H, W)` to features `(n, d)`.
        loader: of the training set, with views.
        images: of the training set.
        folder: of the cache; empty: none.
        pixels: the normalisation of images; features with another one are stored apart.
        prompts: a digest of learned prompts in the tower; likewise.
    """
    autocast = clip.frozen_autocast_dtype
    halved = clip.dtype != torch.float32 or autocast is not None
    dtype = torch.float16 if halved else torch.float32  # exact for fp32, half the size for half precision
    store = None
    if folder:
        meaning = {
            "weights": clip.digest("image"),
            "precision": [str(clip.dtype), str(autocast), str(dtype)],
            "device": clip.device.type,
            "transform": [repr(loader.dataset.transform), pixels],
            "views drawn by": loader.seed_of_views,
            "versions": [PIL.__version__, torchvision.__version__],
        }
        meaning |= {"prompts": prompts} if prompts else {}
        store = FeatureFile(Path(folder, "views"), meaning, clip.embed_dim, dtype)
    table = FeatureTable(images, loader.views, clip.embed_dim, dtype, store)
    if store is not None:
        print(f"Features of {int(table.known.sum()):,} of {table.known.numel():,} views found for {clip.name}")
    features = ViewFeatures(compute, table, -(-loader.loader.batch_size // distributed.world()), clip.device)
    features.agree()
    return features
