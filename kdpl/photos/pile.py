"""The photos of a fit: their paths and contents, and what the two frozen CLIPs see on them, in one file.

A photo is prepared as at prediction, so there is one view of it; the teacher is also asked about its mirror image. Photos are
taken in a fixed order in batches of a fixed size, so that a pass that was stopped resumes to the same bits.
"""

import json
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from kdpl.classifier.decoding import Decoder, stacked_pixels
from kdpl.clip.loading import load_clip
from kdpl.clip.model import Clip, Normalize, effective_precision
from kdpl.clip.names import EMBEDDED
from kdpl.common import sources
from kdpl.common.files import atomic_write, file_digest
from kdpl.common.images import BadImageError
from kdpl.common.safe_text import parse_json
from kdpl.config.keys import ConfigError
from kdpl.datasets.emoji.scenes import EMBEDDED as EMBEDDED_FOLDER
from kdpl.distill.teacher import Teacher
from kdpl.photos.commands import FEATURES as FILE
from kdpl.photos.commands import device_type
from kdpl.text.prompts import sentence_features
from kdpl.text.templates import DEFAULT, fill
from kdpl.text.vocabulary import load_vocabulary

KEY = "kdpl_pile"  # of the metadata
SAVE_EVERY = 60.0  # seconds of a pass that a killed process loses at most
BACKGROUND = 500  # names of the vocabulary with which the class names are compared
TENSORS = ("student", "teacher", "student_background", "teacher_background")
LISTS = ("facts", "paths", "contents", "stamps", "background")


class Words:
    """The CLIPs of a fit, which are loaded when they are first needed, and what they make of names: each is encoded once.

    Args:
        student_name, teacher_name: the CLIPs.
        template: the teacher's sentence.
    """

    def __init__(self, student_name: str, teacher_name: str, template: str):
        self.student_name, self.teacher_name, self.template = student_name, teacher_name, template
        self._known: dict[tuple[str, str, str], Tensor] = {}

    @property
    def precision(self) -> str:
        return "fp32" if self.student_name in EMBEDDED else "fp16"

    @cached_property
    def student(self) -> Clip:
        learned, frozen = (effective_precision(self.precision, device_type(), each) for each in (False, True))
        return load_clip(self.student_name, learned, device_type(), frozen)

    @cached_property
    def teacher(self) -> Clip:
        return load_clip(self.teacher_name, effective_precision(self.precision, device_type(), True), device_type())

    def of_student(self, names: Sequence[str], sentence: str) -> Tensor:
        """Return the student's unit text features `(C, d)` of names in a sentence, on the CPU."""
        return self._features("student", names, sentence)

    def of_teacher(self, names: Sequence[str], sentence: str = "") -> Tensor:
        """Return the teacher's `(C, e)`, by default in its own sentence."""
        return self._features("teacher", names, sentence or self.template)

    @torch.no_grad()
    def _features(self, which: str, names: Sequence[str], sentence: str) -> Tensor:
        if new := [name for name in names if (which, sentence, name) not in self._known]:
            clip = getattr(self, which)
            with clip.autocast(frozen=True):
                features = sentence_features(clip, fill(sentence, new)).cpu()
            self._known.update({(which, sentence, name): f for name, f in zip(new, features, strict=True)})
        return torch.stack([self._known[which, sentence, name] for name in names])


def vocabulary_for(student: str) -> str:
    """Return the vocabulary of a student: that of the embedded models knows their words alone."""
    return str(EMBEDDED_FOLDER / "vocabulary.txt") if student in EMBEDDED else "imagenet21k"


@dataclass(frozen=True)
class Pile:
    """Photos, and the unit features that both CLIPs have of them and of the background's names, in fp16."""

    facts: dict[str, Any]  # what the features depend on: CLIPs with digests, sentence
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
            if sources.exists(file) and (_stamp(file) == self.stamps[i] or file_digest(file).hex() == self.contents[i]):
                kept.append(i)
        return self.rows(kept)

    def distinct(self, labels: Collection[str] = ()) -> "Pile":
        """Return the photos of different content, each once: of copies the last one with a label, or the first."""
        chosen: dict[str, int] = {}
        for i, (path, content) in enumerate(zip(self.paths, self.contents, strict=True)):
            if path in labels or content not in chosen:
                chosen[content] = i
        return self.rows(sorted(chosen.values())) if len(chosen) < len(self) else self

    def unit(self) -> tuple[Tensor, Tensor]:
        """Return the features of student `(N, d)` and teacher `(N, e)` in fp32, of length one."""
        return F.normalize(self.student.float(), dim=-1), F.normalize(self.teacher.float(), dim=-1)

    def write(self, folder: Path) -> None:
        """Write the file; what was there before stays whole until it is done."""
        text = json.dumps({name: getattr(self, name) for name in LISTS})
        with atomic_write(folder / FILE) as file:
            file.write(save({name: getattr(self, name).contiguous() for name in TENSORS}, {KEY: text}))


def read_pile(folder: Path) -> Pile:
    """Return the pile of a fit's folder; an empty one, without facts, if there is none.

    Raises:
        ConfigError: the file is damaged or not of a fit.
    """
    path = folder / FILE
    if not path.is_file():
        none = torch.empty(0, 0, dtype=torch.half)
        return Pile({}, [], [], [], [], none, none, none, none)
    try:
        with safe_open(path, "pt") as file:
            found = parse_json(file.metadata()[KEY], "its metadata")
            return Pile(**found, **{name: file.get_tensor(name) for name in TENSORS})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"'{path}' is not the file of a fit's photos ({error}): remove it, or choose another -o.") from None


def begin_pile(before: Pile, words: Words, folder: Path) -> Pile:
    """Return the pile that `complete` is called with: the photos of an earlier one whose files are as they were.

    Raises:
        ConfigError: the earlier one is of CLIPs with other weights.
    """
    student, teacher = words.student, words.teacher
    facts = {
        "folder": str(folder), "student": words.student_name, "teacher": words.teacher_name, "template": words.template,
        "student_sha256": student.weights_digest, "teacher_sha256": teacher.weights_digest,
        "student_scale": float(student.logit_scale), "teacher_scale": float(teacher.logit_scale),
    }  # fmt: skip
    if before.facts:
        if any(before.facts[name] != facts[name] for name in ("student_sha256", "teacher_sha256")):
            raise ConfigError("The output folder has features of other weights with the same names: choose another one (-o).")
        return replace(before.unchanged(folder), facts=facts)
    names = load_vocabulary(vocabulary_for(words.student_name))
    step = max(1.0, len(names) / BACKGROUND)
    background = [names[int(i * step)] for i in range(min(BACKGROUND, len(names)))]
    texts = words.of_student(background, DEFAULT).half(), words.of_teacher(background, DEFAULT).half()
    return Pile(facts, [], [], [], background, texts[0][:0], texts[1][:0], *texts)


def _stamp(path: Path) -> list[int]:
    return list(sources.stamp(path)[:2])


class Towers:
    """Both frozen CLIPs on photos."""

    def __init__(self, words: Words):
        self.student = student = words.student
        names = ["a photo"]  # a teacher has some, of which image features do not depend
        texts = words.of_teacher(names)
        self.teacher = Teacher(words.teacher, names, words.template, student.mean, student.std, text_features=texts)
        self.decoder, self.normalize = Decoder(student.preprocessing), Normalize(student.mean, student.std)
        # So many that small images fill the machine, and large ones do not keep the user waiting.
        most = 64 if student.device.type == "cpu" else 256
        self.chunk = max(8, min(most, 8 * most // 64 * 224**2 // self.teacher.clip.resolution**2))

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features `(B, d)` and `(B, e)` in fp16 of pixels `(B, 3, R, R)`, at most `chunk` of them."""
        n = len(pixels)
        blank = pixels.new_zeros(self.chunk - n, *pixels.shape[1:])  # in a full batch each photo has the same feature
        images = self.normalize(torch.cat([pixels, blank]).to(self.student.device))
        seen = self.teacher.image_features(images) + self.teacher.image_features(images.flip(-1))
        found = [features[:n].cpu() for features in (self.student.frozen_image_features(images), F.normalize(seen, dim=-1))]
        if not all(torch.isfinite(features).all() for features in found):
            raise FloatingPointError("The features of a photo are NaN or infinite.")
        return found[0].half(), found[1].half()


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
        *lists, student, teacher = zip(*seen, strict=True)
        added = {name: sum(new, getattr(pile, name)) for name, new in zip(("paths", "contents", "stamps"), lists, strict=True)}
        features = {"student": torch.cat([pile.student, *student]), "teacher": torch.cat([pile.teacher, *teacher])}
        return replace(pile, **added, **features)

    saved = time.monotonic()
    try:
        for batch in towers.decoder.batches(list(files), towers.chunk, on_bad=lambda file, error: on_bad(files[file], error)):
            here = [item.image for item in batch]
            digests = [file_digest(file).hex() for file in here]
            features = towers(stacked_pixels(batch))
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
