"""The photos of a fit: their paths and contents, and what the two frozen CLIPs see on them, in one file.

A photo is prepared as at prediction, so there is one view of it; the teacher is also asked about its mirror image. Photos are
taken in a fixed order in batches of a fixed size, so that a pass that was stopped resumes to the same bits.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdpl.classifier.decoding import Decoder, stacked_pixels
from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import Normalize
from kdpl.common.files import atomic_write, file_digest
from kdpl.common.images import BadImageError
from kdpl.common.safe_text import parse_json
from kdpl.config.keys import ConfigError
from kdpl.distill.teacher import Teacher

FILE = "features.safetensors"
KEY = "kdpl_pile"  # of the metadata
SAVE_EVERY = 60.0  # seconds of a pass that a killed process loses at most
TENSORS = ("student", "teacher", "student_background", "teacher_background")


@dataclass(frozen=True)
class Pile:
    """Photos, and the unit features that both CLIPs have of them and of the background's names, in fp16."""

    facts: dict[str, Any]  # what the features depend on: CLIPs with digests, sentence, mirror image
    paths: list[str]  # below the folder of the photos
    contents: list[str]  # digests of the files
    stamps: list[list[int]]  # size and time of modification, by which an unchanged file is known without reading it
    background: list[str]  # names of a vocabulary, with which the class names are compared
    student: Tensor  # (N, d)
    teacher: Tensor  # (N, e)
    student_background: Tensor  # (B, d)
    teacher_background: Tensor  # (B, e)

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, rows: Sequence[int]) -> "Pile":
        """Return some of the photos."""
        lists = {name: [getattr(self, name)[i] for i in rows] for name in ("paths", "contents", "stamps")}
        index = torch.tensor(list(rows), dtype=torch.long)
        return replace(self, **lists, student=self.student[index], teacher=self.teacher[index])

    def of(self, paths: Sequence[str]) -> "Pile":
        """Return the photos of these paths, in this order, as far as they are here."""
        row = {path: i for i, path in enumerate(self.paths)}
        return self.rows([row[path] for path in paths if path in row])

    def unchanged(self, folder: Path) -> "Pile":
        """Return the photos whose files are as they were: of the same size and time, or else of the same content."""
        kept = []
        for i, path in enumerate(self.paths):
            file = folder / path
            if file.is_file() and (_stamp(file) == self.stamps[i] or file_digest(file).hex() == self.contents[i]):
                kept.append(i)
        return self.rows(kept)

    def copies(self) -> dict[str, str]:
        """Return the paths of photos whose content an earlier one has, each with the path of the first."""
        first: dict[str, str] = {}
        pairs = [(path, first.setdefault(content, path)) for path, content in zip(self.paths, self.contents, strict=True)]
        return {path: original for path, original in pairs if path != original}

    def distinct(self) -> "Pile":
        """Return the photos of different content, each once."""
        copies = self.copies()
        return self.rows([i for i, path in enumerate(self.paths) if path not in copies]) if copies else self

    def write(self, folder: Path) -> None:
        """Write the file; what was there before stays whole until it is done."""
        lists = ("facts", "paths", "contents", "stamps", "background")
        text = json.dumps({name: getattr(self, name) for name in lists})
        with atomic_write(folder / FILE) as file:
            file.write(save({name: getattr(self, name).contiguous() for name in TENSORS}, {KEY: text}))


def nothing() -> Pile:
    """Return the pile of which no model has been asked yet."""
    none = torch.empty(0, 0, dtype=torch.half)
    return Pile({}, [], [], [], [], none, none, none, none)


def read_pile(folder: Path) -> Pile | None:
    """Return the pile of a fit's folder; None if there is none.

    Raises:
        ConfigError: the file is damaged or not of a fit.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            found = parse_json(file.metadata()[KEY], "its metadata")
            pile = Pile(**found, **{name: file.get_tensor(name) for name in TENSORS})
        if {len(pile.paths), len(pile.contents), len(pile.stamps), len(pile.student)} != {len(pile.teacher)}:
            raise ValueError("its parts are of different lengths")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"'{path}' is not the file of a fit's photos ({error}): remove it, or choose another -o.") from None
    return pile


def _stamp(path: Path) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns]


class Towers:
    """Both frozen CLIPs on photos; the teacher takes images that are normalised for the student."""

    def __init__(self, student: Clip, teacher: Teacher):
        self.student, self.teacher = student, teacher
        self.decoder, self.normalize = Decoder(student.preprocessing), Normalize(student.mean, student.std)
        # So many that small images fill the machine, and large ones do not keep the user waiting.
        most = 64 if student.device.type == "cpu" else 256
        self.chunk = max(8, min(most, 8 * most // 64 * 224**2 // teacher.clip.resolution**2))

    def __call__(self, pixels: Tensor, mirror: bool) -> tuple[Tensor, Tensor]:
        """Return the features `(B, d)` and `(B, e)` in fp16 of pixels `(B, 3, R, R)`, at most `chunk` of them."""
        n = len(pixels)
        blank = pixels.new_zeros(self.chunk - n, *pixels.shape[1:])  # in a full batch each photo has the same feature
        images = self.normalize(torch.cat([pixels, blank]).to(self.student.device))
        seen = self.teacher.image_features(images)
        if mirror:
            seen = F.normalize(seen + self.teacher.image_features(images.flip(-1)), dim=-1)
        found = [features[:n].cpu() for features in (self.student.frozen_image_features(images), seen)]
        if not all(torch.isfinite(features).all() for features in found):
            raise FloatingPointError("The features of a photo are NaN or infinite.")
        return found[0].half(), found[1].half()

    def seconds(self) -> tuple[float, float]:
        """Return the seconds that a photo takes both towers, and those that its mirror image takes more."""
        blank = torch.zeros(self.chunk, 3, self.student.resolution, self.student.resolution, dtype=torch.uint8)
        for _ in range(2):  # the first one warms up
            start = time.perf_counter()
            self(blank, False)
            middle = time.perf_counter()
            self(blank, True)
            end = time.perf_counter()
        once, both = (middle - start) / self.chunk, (end - middle) / self.chunk
        return once, max(0.0, both - once)


def complete(
    pile: Pile,
    folder: Path,
    order: Sequence[str],
    towers: Towers,
    output: Path,
    on_bad: Callable[[str, BadImageError], None],
    on_seen: Callable[[int], object],
) -> Pile:
    """Return the pile with the photos of `order`, in that order, those encoded that it does not have; it is written on the way.

    Args:
        on_bad: called with the path of a photo that cannot be read; it is left out.
        on_seen: called with how many photos have been encoded since the last call.
    """
    known = set(pile.paths)
    files = {str(folder / path): path for path in order if path not in known}
    seen: list[tuple[list[str], list[str], list[list[int]], Tensor, Tensor]] = []  # of each batch

    def grown() -> Pile:
        if not seen:
            return pile
        paths, contents, stamps, student, teacher = zip(*seen, strict=True)
        return replace(
            pile,
            paths=sum(paths, pile.paths),
            contents=sum(contents, pile.contents),
            stamps=sum(stamps, pile.stamps),
            student=torch.cat([pile.student, *student]),
            teacher=torch.cat([pile.teacher, *teacher]),
        )

    def report(file: str, error: BadImageError) -> None:
        on_bad(files[file], error)

    saved = time.monotonic()
    try:
        for batch in towers.decoder.batches(list(files), towers.chunk, on_bad=report):
            here = [item.image for item in batch]
            digests = [file_digest(file).hex() for file in here]
            features = towers(stacked_pixels(batch), pile.facts["mirror"])
            seen.append(([files[file] for file in here], digests, [_stamp(Path(file)) for file in here], *features))
            on_seen(len(batch))
            if time.monotonic() - saved > SAVE_EVERY:
                grown().write(output)
                saved = time.monotonic()
    finally:
        pile = grown()
        if seen:
            pile.write(output)
    return pile.of(order)
