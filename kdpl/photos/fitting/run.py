"""A fit, step by step: look at the photos, learn, compare."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate

from kdpl.clip.loading import load_clip
from kdpl.clip.model import effective_precision
from kdpl.clip.names import EMBEDDED
from kdpl.common.files import atomic_write
from kdpl.common.images import BadImageError
from kdpl.distill.labelled import Labelled
from kdpl.distill.teacher import Teacher
from kdpl.photos.fitting.candidates import Candidate
from kdpl.photos.fitting.features import Features, Pass
from kdpl.photos.fitting.finish import finish
from kdpl.photos.fitting.plan import LEAST_DIFFERENT, LEAST_PHOTOS, Plan, split, write_json
from kdpl.photos.fitting.train import seconds, train
from kdpl.photos.labels import LABELLED, PHOTOS, TEACHER
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
    print(tabulate([row for row in rows if row[1]], tablefmt="plain"), flush=True)


class Fit:
    """The steps of a fit: `load`, `look`, `learn`, `finish`; `decided` is what an earlier start of the same fit has decided."""

    def __init__(self, plan: Plan, quiet: bool, decided: Mapping[str, Any]):
        self.plan, self.quiet, self.decided = plan, quiet, dict(decided)
        self.unreadable = {str(path): reason for path, reason in plan.skipped.items()}
        for reason in list(self.unreadable.values())[:SHOWN]:
            print(f"left out: {reason}", file=sys.stderr)

    def load(self) -> None:
        """Load the models."""
        plan = self.plan
        with atomic_write(plan.file("names.txt"), "w") as file:
            file.write("\n".join([*plan.names, ""]))
        with Doing(f"Loading {plan.student} and {plan.teacher}", quiet=self.quiet):
            device = device_type()
            precision = "fp32" if plan.student in EMBEDDED else "fp16"  # as `settings` of the candidates has it
            learned, frozen = (effective_precision(precision, device, each) for each in (False, True))
            self.clip = load_clip(plan.student, learned, device, frozen)
            self.teacher_clip = load_clip(plan.teacher, frozen, device)

    def look(self) -> None:
        """Compute the features of the photos that there is time for, and decide what is learned."""
        plan = self.plan
        with Doing("Encoding the class names", quiet=self.quiet):
            self.teacher = Teacher(self.teacher_clip, plan.names, plan.template, self.clip.mean, self.clip.std)
            self._encode_names()
            self.look_at = Pass(self.clip, self.teacher)
        most = self.decided.get("photos", plan.most)
        with Doing("Looking at photos", most, "photo", self.quiet) as doing:
            taken, features = self.look_at(plan.photos, plan.order[:most], self._limit, self._leave_out, doing)
        self.features = self._without_copies(features)
        self._divide()
        if not self.decided:
            self.decided = {"photos": taken, "learn": [c.key for c in self._affordable(taken)]}
            plan.decide(**self.decided)
        train, chosen_by, reported = (f"{len(part.names):,}" for part in self.parts.values())
        known = f", {len(self.with_labels.names):,} of them with labels" if plan.labels else ""
        held = f"{chosen_by} to choose the best by, {reported} to report on"
        print(f"Photos: {train} to learn from{known}, held out: {held}; {len(self.unreadable):,} could not be read")

    def _encode_names(self) -> None:
        """Refuse names that are the same to the teacher; say which are to the student, whose vectors can still part them."""
        plan = self.plan
        with self.clip.autocast(frozen=True), torch.no_grad():
            texts = sentence_features(self.clip, fill(plan.template, plan.names), normalize=False).float()  # (C, d)
        if line := words_of(same_features(plan.names, self.teacher.text_features), plan.teacher):
            raise ValueError(line)
        if line := words_of(same_features(plan.names, F.normalize(texts, dim=-1)), plan.student):
            print(f"Warning: {line}", file=sys.stderr)
        self.text_size = float(texts.square().mean().sqrt())  # in whose units class vectors move

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

    def _divide(self) -> None:
        """Divide the photos into parts, and look up the labels of those that have one."""
        names, labels = self.features.names, self.plan.labels
        self.with_labels = self.features.of([name for name in names if name in labels])
        self.parts = {part: self.features.of(some) for part, some in split(names, self.with_labels.names).items()}
        classes = torch.tensor([self.plan.names.index(labels[name]) for name in self.with_labels.names])
        self.labelled = Labelled(self.with_labels.frozen, classes) if len(classes) else None

    def _affordable(self, taken: int) -> list[Candidate]:
        """Return the candidates that there is time to learn, in order; the first one always is."""
        first, *others = self.plan.candidates
        chosen = [first]
        if not others:
            return chosen
        with Doing("Measuring the speed of learning", quiet=self.quiet):
            looking = taken * self.look_at.seconds()
            allowed = TRAINING_LEAST if looking < TRAINING_LEAST else TRAINING_SHARE * looking
            spent = seconds(self, first)
            for candidate in others:
                needed = seconds(self, candidate) if candidate.from_features else 0.0
                if spent + needed <= allowed:
                    spent += needed
                    chosen.append(candidate)
                else:
                    print(
                        f"{candidate.title} are left out: about {duration(needed)} to learn, where looking at all photos takes "
                        f"{duration(looking)}. Alone: --variant {candidate.key}, with another -o."
                    )
        return chosen

    def learn(self) -> None:
        """Train what was decided on, each in its own folder."""
        self.trained = [c for c in self.plan.candidates if c.key in self.decided["learn"]]
        for candidate in self.trained:
            train(self, candidate)

    def finish(self, sentences: Sequence[str]) -> None:
        """Record what the photos were for, compare with sentences, also with these, calibrate, and write what is used."""
        plan, device = self.plan, self.clip.device
        rows = {**self.parts, LABELLED: self.with_labels}.items()
        write_json(plan.file(PHOTOS), {part: dict(zip(some.names, some.contents, strict=True)) for part, some in rows})
        if not plan.agnostic:
            logits = self.teacher.logits(self.features.teacher.to(device), self.clip.logit_scale)
            seen = [plan.names[i] for i in logits.argmax(1).tolist()]
            write_json(plan.file(TEACHER), dict(zip(self.features.contents, seen, strict=True)))
        finish(self, sentences)
