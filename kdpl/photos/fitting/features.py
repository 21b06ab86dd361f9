"""One pass over the photos: the features of the frozen student and of the teacher, computed once and cached on disk.

A photo is prepared as at prediction, so there is one view of it. Features are found again by the digest of the file and those
of the CLIPs, whatever the names, the learner or the folder of the fit: a pass that was stopped resumes.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kdpl.classifier.decoding import Decoder, stacked_pixels
from kdpl.classifier.known import ImageFeatureCache, meaning_of
from kdpl.clip.inputs import Normalize
from kdpl.clip.model import Clip
from kdpl.common.images import BadImageError
from kdpl.distill.teacher import Teacher
from kdpl.photos.waiting import Doing

MEASURED = 3  # chunks after which the speed is known; the first, which warms up, does not count


@dataclass
class Features:
    """The features of photos, in their order."""

    names: list[str]  # paths below the folder of the photos
    contents: list[str]  # digests of the files
    frozen: Tensor  # (N, d) of the frozen student
    teacher: Tensor  # (N, d of the teacher)

    def of(self, names: Sequence[str]) -> "Features":
        """Return the features of some of the photos."""
        place = {name: i for i, name in enumerate(self.names)}
        index = torch.tensor([place[name] for name in names], dtype=torch.long)
        return Features(list(names), [self.contents[i] for i in index], self.frozen[index], self.teacher[index])

    def copies(self) -> dict[str, str]:
        """Return the names of photos whose content an earlier one has, each with the name of the first."""
        first: dict[str, str] = {}
        pairs = [(name, first.setdefault(content, name)) for name, content in zip(self.names, self.contents, strict=True)]
        return {name: original for name, original in pairs if name != original}


@dataclass
class Pace:
    """The speed of the towers: seconds a photo; None until it is known."""

    seconds: float | None = None
    _chunks: list[tuple[int, float]] = field(default_factory=list)

    def add(self, photos: int, seconds: float) -> bool:
        """Add a chunk; return whether the speed has just become known."""
        self._chunks.append((photos, seconds))
        if self.seconds is not None or len(self._chunks) < MEASURED:
            return False
        counts, times = zip(*self._chunks[1:], strict=True)
        self.seconds = sum(times) / sum(counts)
        return True


class _Both:
    """What the decoder asks for: whether both towers know a file."""

    def __init__(self, caches: Sequence[ImageFeatureCache]):
        self.caches, self.key = caches, caches[0].key

    def __contains__(self, key: bytes) -> bool:
        return all(key in cache for cache in self.caches)


class Pass:
    """The two frozen towers, and their caches in the cache folder; the teacher takes images normalised for the student."""

    def __init__(self, clip: Clip, teacher: Teacher):
        self.clip, self.teacher = clip, teacher
        self.decoder, self.normalize = Decoder(clip.preprocessing), Normalize(clip.mean, clip.std)
        # So many that small images fill the machine, and large ones do not keep the user waiting.
        most = 64 if clip.device.type == "cpu" else 256
        self.chunk = max(8, min(most, 8 * most // 64 * 224**2 // teacher.clip.resolution**2))
        own = {**meaning_of(clip, clip.preprocessing), "least": 0}  # as `kdpl predict` has it, which finds these features
        theirs = {**meaning_of(teacher.clip, clip.preprocessing), "as": "teacher"}
        self.caches = [ImageFeatureCache(own, clip.embed_dim), ImageFeatureCache(theirs, teacher.clip.embed_dim)]
        self.decoder.known = _Both(self.caches)
        self.pace = Pace()

    def __call__(
        self,
        photos: Path,
        names: Sequence[str],
        limit: Callable[[float, int], int],
        on_bad: Callable[[str, BadImageError], None],
        doing: Doing,
    ) -> tuple[int, Features]:
        """Compute the features of the first photos.

        Args:
            names: of all photos, in the order in which they are taken.
            limit: given the seconds a photo and how many photos were taken, returns how many to take in all.
            on_bad: called with the name of a photo that cannot be read; it is left out.

        Returns:
            How many photos were taken, those that cannot be read among them, and the features of the others.

        Raises:
            ValueError: no photo can be read.
        """
        count, taken, bad, read, rows = len(names), 0, [], [], []

        def report(path: str, error: BadImageError) -> None:
            bad.append(path)
            on_bad(path, error)

        start = time.perf_counter()
        for batch in self.decoder.batches([str(photos / name) for name in names], self.chunk, on_bad=report):
            rows.append(self._features(batch))
            read += [(item.image, item.key) for item in batch]
            taken = len(read) + len(bad)
            now = time.perf_counter()
            new = sum(item.pixels is not None for item in batch)
            if new and self.pace.add(new, now - start):
                count = min(len(names), max(taken, limit(self.pace.seconds, taken)))
            start = now
            doing.reached(min(taken, count), count)
            if taken >= count:
                break
        if not read:
            raise ValueError(f"PHOTOS '{photos}' has no photo that can be read.")
        below = [Path(path).relative_to(photos).as_posix() for path, _ in read]
        return taken, Features(below, [key.hex() for _, key in read], *map(torch.cat, zip(*rows, strict=True)))

    def _features(self, batch: Sequence[Any]) -> list[Tensor]:
        """Return the features of decoded photos by both towers, those in the caches among them."""
        new = [item for item in batch if item.pixels is not None]
        known = [item.key for item in batch if item.pixels is None]
        order = {key: i for i, key in enumerate([*known, *(item.key for item in new)])}
        index = torch.tensor([order[item.key] for item in batch])
        found = [cache.get(known) if known else torch.empty(0, cache.width) for cache in self.caches]
        if new:
            pixels = stacked_pixels(new)
            blank = pixels.new_zeros(self.chunk - len(new), *pixels.shape[1:])  # a photo's feature is the same in any company
            images = self.normalize(torch.cat([pixels, blank]).to(self.clip.device))
            for i, compute in enumerate((self.clip.frozen_image_features, self.teacher.image_features)):
                features = compute(images)[: len(new)].cpu()
                if not torch.isfinite(features).all():
                    raise FloatingPointError(f"Features of {new[0].image} or its neighbours are NaN or infinite.")
                self.caches[i].add([item.key for item in new], features)
                found[i] = torch.cat([found[i], features])
        return [features[index] for features in found]

    def seconds(self) -> float:
        """Return the seconds that a photo takes the towers: measured in the pass, else on a blank one now."""
        if self.pace.seconds is None:
            blank = torch.zeros(self.chunk, 3, self.clip.resolution, self.clip.resolution, device=self.clip.device)
            for _ in range(2):
                start = time.perf_counter()
                self.clip.frozen_image_features(blank)
                self.teacher.image_features(blank).cpu()
                self.pace.seconds = (time.perf_counter() - start) / self.chunk
        return self.pace.seconds
