"""A fit, step by step: look at the photos, learn, compare."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.loading import load_clip
from kdpl.clip.model import effective_precision
from kdpl.clip.names import EMBEDDED
from kdpl.common.files import atomic_write
from kdpl.common.images import BadImageError
from kdpl.common.safe_text import print, text_table
from kdpl.distill.labelled import Labelled
from kdpl.distill.teacher import Teacher
from kdpl.photos.fitting.candidates import Candidate
from kdpl.photos.fitting.compare import CHOSEN_BY, REPORTED
from kdpl.photos.fitting.features import Features, Pass
from kdpl.photos.fitting.finish import finish
from kdpl.photos.fitting.plan import LEAST_DIFFERENT, LEAST_PHOTOS, Parts, Plan, split
from kdpl.photos.fitting.train import seconds, train
from kdpl.photos.labels import LABELLED, PHOTOS, TEACHER, TRAIN
from kdpl.photos.models import device_type, downloads, size_of
from kdpl.photos.waiting import Doing, duration
from kdpl.text.prompts import sentence_features
from kdpl.text.same import same_features, words_of
from kdpl.text.templates import fill

TRAINING_SHARE = 0.15  # of the time of the pass, that learning may take: a fit is to take 1.3 times the pass at most
TRAINING_LEAST = 60.0  # seconds that it may take beside a pass that is shorter than that
SHOWN = 10  # unreadable photos that are listed


def say(plan: Plan) -> None:
    """Print what will be done, and what will be downloaded, before it is."""
    sizes = [size_of(name) for name in dict.fromkeys((plan.student, plan.teacher))]
    fewer = f", of which {plan.most:,} are looked at" if plan.most < len(plan.order) else ""
    rows = [
        ["photos", f"{len(plan.order):,}{fewer}"],
        ["not read", plan.media],
        ["class names", f"{len(plan.names):,}: {', '.join(plan.names[:4])}{', ...' if len(plan.names) > 4 else ''}"],
        ["student", f"{sizes[0]}"],
        ["teacher", f"{sizes[-1]}"],
        ["download", downloads(sizes)],
        ["learns", ", ".join(c.title for c in plan.candidates)],
        ["output", f"{plan.output}"],
    ]
    print(text_table([row for row in rows if row[1]], tablefmt="plain"), flush=True)


class Fit:
    """The steps of a fit.

    Args:
        decided: by an earlier start of the same fit.
    """

    def __init__(self, plan: Plan, quiet: bool, decided: Mapping[str, Any]):
        self.plan, self.quiet, self.decided = plan, quiet, dict(decided)
        self.unreadable = {str(path): reason for path, reason in plan.skipped.items()}
        for reason in list(self.unreadable.values())[:SHOWN]:
            print(f"left out: {reason}", file=sys.stderr)

    def look(self) -> None:
        """Load the models, compute the features of the photos that there is time for, and decide what is learned."""
        self._load()
        self._look()

    def _load(self) -> None:
        plan = self.plan
        plan.write_names()
        with Doing(f"Loading {plan.student} and {plan.teacher}", quiet=self.quiet):
            device = device_type()
            precision = "fp32" if plan.student in EMBEDDED else "fp16"  # as `settings` of the candidates has it
            learned, frozen = (effective_precision(precision, device, each) for each in (False, True))
            self.clip = load_clip(plan.student, learned, device, frozen)
            self.teacher_clip = load_clip(plan.teacher, frozen, device)

    def _look(self) -> None:
        plan = self.plan
        with Doing("Encoding the class names", quiet=self.quiet):
            self.teacher = Teacher(self.teacher_clip, plan.names, plan.template, self.clip.mean, self.clip.std)
            with self.clip.autocast(frozen=True), torch.no_grad():
                texts = sentence_features(self.clip, fill(plan.template, plan.names), normalize=False)  # (C, d)
            self._compare_names(texts)
            self.text_size = float(texts.float().square().mean().sqrt())
            self.look_at = Pass(self.clip, self.teacher)
        most = self.decided.get("photos", plan.most)
        with Doing("Looking at photos", most, "photo", self.quiet) as doing:
            taken, features = self.look_at(plan.photos, plan.order[:most], self._limit, self._leave_out, doing)
        self.features = self._without_copies(features)
        labelled = [name for name in self.features.names if name in plan.labels]
        self.parts = split(self.features.names, labelled)
        self.labelled = self.features.of(labelled)
        if not self.decided:
            self.decided = {"photos": taken, "learn": [c.key for c in self._affordable(taken)]}
            plan.decide(**self.decided)
        held = f"{len(self.parts.chosen_by):,} to choose the best by, {len(self.parts.reported):,} to report on"
        known = f", {len(labelled):,} of them with labels" if plan.labels else ""
        bad = len(self.unreadable)
        print(f"Photos: {len(self.parts.train):,} to learn from{known}, held out: {held}; {bad:,} could not be read")

    def _without_copies(self, features: Features) -> Features:
        """Return the features of different photos: what is held out must not be a copy of what is trained on.

        Raises:
            ValueError: copies have different labels, or there are fewer than `LEAST_DIFFERENT` different photos.
        """
        copies, labels = features.copies(), self.plan.labels
        for name, original in copies.items():
            if labels.get(name, labels.get(original)) != labels.get(original):
                both = f"'{labels.get(original)}' and '{labels[name]}'"
                raise ValueError(
                    f"'{original}' and '{name}' are copies of one photo, with the labels {both}: correct one of them."
                )
        different = [name for name in features.names if name not in copies]
        if len(different) < LEAST_DIFFERENT:
            raise ValueError(
                f"PHOTOS '{self.plan.photos}' has {len(different)} different photos that can be read, expected at least "
                f"{LEAST_DIFFERENT}: the others are copies of these."
            )
        if copies:
            print(f"{len(copies):,} photos are copies of others, such as '{next(iter(copies))}': each is looked at once")
        return features.of(different)

    def _compare_names(self, texts: Tensor) -> None:
        """Refuse names that are the same to the teacher; say which are to the student, whose vectors can still part them.

        Raises:
            ValueError: to the teacher some names are the same.
        """
        if line := words_of(same_features(self.plan.names, self.teacher.text_features), self.plan.teacher):
            raise ValueError(line)
        if line := words_of(same_features(self.plan.names, F.normalize(texts.float(), dim=-1)), self.plan.student):
            print(f"Warning: {line}", file=sys.stderr)

    def _limit(self, seconds: float, taken: int) -> int:
        """Return how many photos there is time for, and say so."""
        plan = self.plan
        if self.decided:
            return plan.most
        least = LEAST_PHOTOS + len(plan.labels)  # these come first, and others must be there to compare on
        count = min(plan.most, max(least, taken + int(60 * plan.minutes / seconds)))
        if count < plan.most:
            print(
                f"{count:,} of {plan.most:,} photos are looked at, drawn at random: a photo takes {seconds:.2f} s here, and "
                f"there are {plan.minutes:g} min. All would take --minutes {1.1 * seconds * plan.most / 60 + 1:.0f}.",
                flush=True,
            )
        return count

    def _leave_out(self, name: str, error: BadImageError) -> None:
        self.unreadable[name] = str(error)
        if len(self.unreadable) <= SHOWN:
            print(f"left out: {error}", file=sys.stderr)

    def _affordable(self, taken: int) -> list[Candidate]:
        """Return the candidates that there is time to learn, in order; the first one always is."""
        plan, chosen = self.plan, self.plan.candidates[:1]
        if len(plan.candidates) == 1:
            return chosen
        with Doing("Measuring the speed of learning", quiet=self.quiet):
            looking = taken * self.look_at.seconds()
            allowed = TRAINING_LEAST if looking < TRAINING_LEAST else TRAINING_SHARE * looking
            spent = seconds(plan, chosen[0], len(self.parts.train), self.clip, self.text_size)
            for candidate in plan.candidates[1:]:
                needed = 0.0
                if candidate.from_features:
                    needed = seconds(plan, candidate, len(self.parts.train), self.clip, self.text_size)
                if spent + needed > allowed:
                    print(
                        f"{candidate.title} are left out: about {duration(needed)} to learn, where looking at all photos takes "
                        f"{duration(looking)}. Alone: --variant {candidate.key}, with another -o."
                    )
                    continue
                spent += needed
                chosen.append(candidate)
        return chosen

    def learn(self) -> None:
        """Train what was decided on, each in its own folder."""
        place = {name: i for i, name in enumerate(self.plan.names)}
        labels = torch.tensor([place[self.plan.labels[name]] for name in self.labelled.names])
        labelled = Labelled(self.labelled.frozen, labels) if self.labelled.names else None
        self.trained = [c for c in self.plan.candidates if c.key in self.decided["learn"]]
        for candidate in self.trained:
            train(
                self.plan, candidate, self.parts.train, self.features, self.teacher_clip, labelled, self.text_size, self.quiet
            )

    def finish(self, sentences: Sequence[str]) -> None:
        """Compare, calibrate, and write the bundle that is used."""
        parts: Parts = self.parts
        named = {TRAIN: parts.train, CHOSEN_BY: parts.chosen_by, REPORTED: parts.reported}
        photos: dict[str, Features] = {name: self.features.of(part) for name, part in named.items()}
        rows = {**photos, LABELLED: self.labelled}.items()
        with atomic_write(self.plan.file(PHOTOS), "w") as file:
            json.dump({name: dict(zip(part.names, part.contents, strict=True)) for name, part in rows}, file, indent=0)
        if not self.plan.agnostic:
            logits = self.teacher.logits(self.features.teacher.to(self.clip.device), self.clip.logit_scale)
            seen = [self.plan.names[i] for i in logits.argmax(1).tolist()]
            with atomic_write(self.plan.file(TEACHER), "w") as file:
                json.dump(dict(zip(self.features.contents, seen, strict=True)), file, indent=0)
        finish(self.plan, self.clip, self.teacher, photos, self.trained, sentences, self.quiet)
