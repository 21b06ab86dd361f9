"""Features of frozen towers for the fixed views of a training set, computed once and cached in memory and on disk."""

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from kdpl.clip.preprocessing import moved
from kdpl.common import distributed
from kdpl.common.files import file_key, key_of, name_below
from kdpl.common.tensor_files import FeatureFile, file_digests


class ImageFile(NamedTuple):
    """The identity of an image: its name in the data set, by which its views are drawn, and a digest of its file's content."""

    name: str
    content: str

    def key(self, view: int) -> bytes:
        return key_of(self.name, self.content, view)


def image_files(paths: Sequence[str], root: str | os.PathLike) -> list[ImageFile]:
    """Return the identities of a data set's images, whose names are their paths below `root`.

    Raises:
        OSError: one is missing or cannot be read.
    """
    try:
        digests = file_digests(paths, [file_key(path) for path in paths])
    except FileNotFoundError as error:
        raise FileNotFoundError(f"No image at '{error.filename}'. Check DATASET.ROOT.") from None
    return [ImageFile(name_below(path, root), digest.hex()) for path, digest in zip(paths, digests, strict=True)]


def images_digest(items: Sequence[Any], files: Sequence[ImageFile], labelled: bool) -> str:
    """Return how many images there are, and a digest of their names, contents and, with labels, labels in order."""
    rows = [[file.name, file.content, item.label if labelled else 0] for file, item in zip(files, items, strict=True)]
    return f"{len(items)} ({key_of(rows).hex()})"


class ViewFeatures:
    """A frozen tower's features `(d,)` by image and view, computed when a view is first seen.

    Args:
        images: the training set (N).
        views: V, the number of views per image.
        width: d.
        dtype: float16 or float32; features are rounded to it, so that they are the same in memory and on disk.
        store: the cache on disk; None: memory only.
        compute: maps normalised images `(n, 3, H, W)` to features `(n, d)`; None: all are known.
        chunk: number of images computed together. Smaller chunks are padded with blank images, so that an image's feature is
            bit-identical whatever else is in the batch.
        device: of the returned features.

    Attributes:
        known: which features are, `(N, V)`.
    """

    def __init__(
        self,
        images: Sequence[ImageFile],
        views: int,
        width: int,
        dtype: torch.dtype,
        store: FeatureFile | None = None,
        compute: Callable[[Tensor], Tensor] | None = None,
        chunk: int = 1,
        device: torch.device | str = "cpu",
    ):
        self.images, self.views, self.dtype, self.store = images, views, dtype, store
        self.compute, self.chunk, self.device = compute, chunk, torch.device(device)
        self.known = torch.zeros(len(images), views, dtype=torch.bool)
        self.values = torch.empty(len(images) * views, width, dtype=dtype)  # (N * V, d); pages not written take no memory
        self._later: list[tuple[Tensor, Tensor, Tensor, bool, torch.cuda.Event]] = []
        if store is not None:
            keys = [image.key(view) for image in images for view in range(views)]
            found = [row for row, key in enumerate(keys) if key in store]
            self.values[found] = store.get([keys[row] for row in found])
            self.known.view(-1)[found] = True
        if distributed.world() > 1:  # all ranks know the same, and rank 0 alone writes
            self.known &= distributed.total(self.known.int()) == distributed.world()
            self.store = store if distributed.is_main() else None

    @property
    def unknown(self) -> int:
        """The number of features that are not known."""
        self.settle()
        return int((~self.known).sum())

    def missing(self, index: Tensor, view: Tensor) -> Tensor:
        """Return a mask `(B,)` of the images whose features are not known, so that their pixels are needed."""
        self.settle()
        return ~self.known[index, view]

    def get(self, index: Tensor, view: Tensor) -> Tensor:
        """Return the features `(B, d)` on the CPU; those that are not known are NaN."""
        missing = self.missing(index, view)
        features = self.values[index * self.views + view]
        features[missing] = torch.nan
        return features

    def put(self, index: Tensor, view: Tensor, features: Tensor, on_disk: bool = True) -> None:
        """Add features `(B, d)`; those that are not finite are left out. Not `on_disk`: in memory alone."""
        finite = torch.isfinite(features).all(1)
        index, view, features = index[finite], view[finite], features[finite].to(self.dtype)
        self.values[index * self.views + view] = features
        self.known[index, view] = True
        if self.store is not None and on_disk:
            pairs = zip(index.tolist(), view.tolist(), strict=True)
            self.store.add([self.images[i].key(v) for i, v in pairs], features)

    def put_later(self, index: Tensor, view: Tensor, features: Tensor, on_disk: bool = True) -> None:
        """As `put`, with features of a GPU: they are copied while it works on, and are there when they are next asked for."""
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

    def __call__(self, batch: dict[str, Any], pixels: Tensor | None) -> Tensor:
        """Return the features `(B, d)` in fp32.

        Args:
            batch: of an `EpochLoader` with views.
            pixels: normalised images `(len(batch["rows"]), 3, H, W)`; None if nothing is missing.
        """
        index, view = batch["index"], batch["view"]
        missing = self.missing(index, view).nonzero().squeeze(1)
        new = self._computed(pixels, torch.searchsorted(batch["rows"], missing))
        replaced = any(batch.get("unreadable", ()))  # the features are those of another image
        if self.device.type == "cpu" or distributed.world() > 1:
            self._put_for_all(batch, new.cpu(), replaced)
            return moved(self.get(index, view), self.device).float()
        features = moved(self.get(index, view), self.device)  # (B, d), NaN where they are missing
        if len(missing):
            features[moved(missing, self.device)] = new.to(features.dtype)
            self.put_later(index[missing], view[missing], new, on_disk=not replaced)
        return features.float()

    def _computed(self, pixels: Tensor | None, rows: Tensor) -> Tensor:
        """Return the features `(n, d)` of the images in some rows of `pixels`, in fp32, on the device."""
        found = [torch.empty(0, self.values.shape[1], device=self.device)]
        for some in rows.split(self.chunk) if len(rows) else ():
            images = pixels[moved(some, self.device)]
            blank = images.new_zeros(self.chunk - len(images), *images.shape[1:])
            found.append(self.compute(torch.cat([images, blank]))[: len(some)].float())
        return torch.cat(found)

    def _put_for_all(self, batch: dict[str, Any], features: Tensor, replaced: bool) -> None:
        """Add the features that this and the other ranks have computed, in the order of the whole batch."""
        index, view = batch["all_index"], batch["all_view"]
        missing = self.missing(index, view)
        if missing.any():
            counts = [int(part.sum()) for part in missing.split(batch["counts"])]
            on_disk = not distributed.any_rank(replaced)
            self.put(index[missing], view[missing], distributed.gather_rows(features, counts), on_disk)
