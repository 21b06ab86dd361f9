"""What `kdpl fit` will do with a folder of photos: which it looks at, which of them are held out, what is learned."""

import argparse
import json
import os
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdpl.common.class_names import REJECTED
from kdpl.common.files import atomic_write
from kdpl.common.image_files import list_images, media_line
from kdpl.common.images import unreadable
from kdpl.common.rows import key_of
from kdpl.common.safe_text import read_json
from kdpl.config.keys import ConfigError
from kdpl.photos.fitting.candidates import Candidate, candidates_for, refuse_labels
from kdpl.photos.labels import CHOSEN_BY, REPORTED, TRAIN, read_labels

SHARE_REPORTED = (0.2, 20, 400)  # photos that the comparison is reported on: share, at least (or a third of all), at most
SHARE_CHOSEN_BY = (0.1, 10, 200)  # others, by which the best is chosen
LEAST_PHOTOS = 64  # that are looked at, however little time there is
LEAST_DIFFERENT = 4  # photos: two to learn from, one to choose by and one to report on
QUICK_PHOTOS = (200, 12)  # with --quick: at most so many, or so many for each name
CHECKED = 200  # photos whose headers are read before anything is loaded
DECISIONS = "fit.json"


def split(photos: Sequence[str], labelled: Sequence[str] = ()) -> dict[str, list[str]]:
    """Return the parts of photos in random order; those with a label are trained on and never held out."""
    fixed = set(labelled)
    free = [name for name in photos if name not in fixed]
    reported = _share(len(free), *SHARE_REPORTED, 3)
    held = reported + _share(len(free), *SHARE_CHOSEN_BY, 6)
    train = [name for name in photos if name in fixed] + free[held:]
    return {TRAIN: train, CHOSEN_BY: free[reported:held], REPORTED: free[:reported]}


def _share(count: int, share: float, least: int, most: int, divisor: int) -> int:
    return min(most, max(round(share * count), min(least, count // divisor), 1))


@dataclass(frozen=True)
class Plan:
    """A fit, before it is started."""

    photos: Path  # the folder
    names: list[str]
    output: Path
    student: str
    teacher: str
    effort: str
    variant: str
    template: str
    seed: int
    minutes: float  # that looking at photos may take
    order: list[str]  # the photos, relative to the folder, as they are looked at: those with labels, then others at random
    most: int  # of them are looked at
    candidates: list[Candidate]
    labels: dict[str, str]  # the classes that are known of some photos
    skipped: dict[Path, str]  # what cannot be read, with the reasons
    media: str  # pictures and films that are not read

    @property
    def agnostic(self) -> bool:
        """Whether names of a vocabulary are learned from: with a single name there is nothing to distil."""
        return len(self.names) == 1

    def file(self, name: str) -> Path:
        return self.output / name

    def folder(self, candidate: Candidate) -> Path:
        """Return the folder of a candidate's training."""
        return self.output / "learned" / candidate.key

    @property
    def settings(self) -> dict[str, Any]:
        """What a fit that is resumed must have in common, by the flag that gives it."""
        return {
            "--student": self.student,
            "--teacher": self.teacher,
            "--quick, --best": self.effort,
            "--variant": self.variant,
            "--template": self.template,
            "--seed": self.seed,
            "--minutes": self.minutes,
        }

    def decided(self) -> dict[str, Any]:
        """Return what an earlier start of this fit has decided; empty if there was none.

        Raises:
            ConfigError: the folder has a fit of other photos, names or settings, or a file that is not of a fit.
        """
        path = self.file(DECISIONS)
        if not path.is_file():
            return {}
        try:
            found = read_json(path)
            settings, inputs, decided = dict(found["settings"]), dict(found["inputs"]), found["decided"]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise ConfigError(
                f"'{path}' is not of a fit ({error}): remove '{self.output}', or choose another folder."
            ) from None
        pairs = [(key, settings.get(key), value) for key, value in self.settings.items()]
        different = [f"  {key}: '{then}' there, '{now}' here" for key, then, now in pairs if then != now]
        different += [f"  {name} differ" for name, digest in self._inputs().items() if inputs.get(name) != digest]
        if different:
            about = f"'{self.output}' is the fit of other photos, names or settings:"
            raise ConfigError("\n".join([about, *different, "Choose another output folder (-o), or remove this one."]))
        return decided

    def decide(self, **decided: Any) -> None:
        """Record what this fit has decided, by which it is resumed."""
        write_json(self.file(DECISIONS), {"settings": self.settings, "inputs": self._inputs(), "decided": decided})

    def _inputs(self) -> dict[str, str]:
        labels = key_of(*sorted(self.labels.items())).hex() if self.labels else ""
        return {"photos": key_of(*sorted(self.order)).hex(), "class names": key_of(*self.names).hex(), "labels": labels}


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)


def make_plan(args: argparse.Namespace, names: Sequence[str]) -> Plan:
    """Return the plan of a fit; `args` are those of `kdpl fit`, with photos, output, student and teacher filled in.

    Raises:
        ConfigError: there are too few photos, or the learner cannot be used with the student.
    """
    photos = Path(args.photos).absolute()
    candidates = candidates_for(args.effort, args.variant, len(names) == 1, args.student)
    if not photos.is_dir():
        raise ConfigError(f"PHOTOS '{photos}' is not a folder: expected the folder with your photos.")
    listing = list_images(photos)
    order = [path.relative_to(photos).as_posix() for path in listing.images]
    random.Random(args.seed).shuffle(order)
    bad = unreadable([photos / name for name in order[:CHECKED]], decode=False)
    readable = len(order) - len(bad)
    if readable < LEAST_DIFFERENT:
        raise ConfigError(
            f"PHOTOS '{photos}' has {readable} photos that can be read, expected at least {LEAST_DIFFERENT}, and better some "
            "hundred: of few, half are held out."
        )
    order = [name for name in order if photos / name not in bad]
    labels = _labels(args, photos, names, order) if args.labels else {}
    for candidate in candidates if labels else ():
        refuse_labels(candidate)
    order.sort(key=lambda name: name not in labels)  # which keeps the random order otherwise
    most = max(QUICK_PHOTOS[0], QUICK_PHOTOS[1] * len(names)) if args.effort == "quick" else len(order)
    return Plan(
        photos, list(names), Path(args.output), args.student, args.teacher, args.effort, args.variant, args.template, args.seed,
        args.minutes, order, min(max(most, len(labels) + LEAST_PHOTOS), len(order)), candidates, labels,
        {**listing.unreadable, **bad}, media_line(listing.media),
    )  # fmt: skip


def _labels(args: argparse.Namespace, photos: Path, names: Sequence[str], order: Sequence[str]) -> dict[str, str]:
    """Return the classes of the labelled photos; enough others must be left to compare on."""
    there, labels, others = set(order), {}, 0
    for path, label, _ in read_labels(args.labels, list(names)):
        if label in ("", REJECTED):
            continue
        name = Path(os.path.relpath(os.path.abspath(path), photos)).as_posix()
        if name in there:
            labels[name] = label
        else:
            others += 1
    if not labels:
        raise ConfigError(
            f"--labels '{args.labels}' has no label of a photo in '{photos}' ({others:,} are of other files): expected a table "
            "with the columns path and label, as the gallery of these photos saves it."
        )
    if others:
        print(f"--labels '{args.labels}': {others:,} labels of files that are not in '{photos}' are left out", file=sys.stderr)
    if len(order) - len(labels) < 3:
        raise ConfigError(
            f"--labels '{args.labels}': {len(labels):,} of {len(order):,} photos have a label, and at least 3 must have none: "
            "the comparison holds them out, and labelled photos are trained on."
        )
    return labels
