"""The end of a fit: compare on the held-out photos, calibrate, write what is used into the bundle, and say it in words."""

import dataclasses
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tabulate import tabulate
from torch import Tensor

from kdpl.bundle import Bundle, read_bundle, write_bundle
from kdpl.bundle.decision import Decision, inside_score
from kdpl.bundle.learned import NameEncoder, fitting_options, learned_student
from kdpl.classifier.decoding import Decoder, stacked_pixels
from kdpl.clip.inputs import Normalize
from kdpl.clip.loading import describe
from kdpl.clip.model import Clip, similarity_logits
from kdpl.common.safe_text import on_one_line
from kdpl.distill.teacher import Teacher
from kdpl.photos.fitting.calibrate import Threshold, background_names, fit_temperature, fit_threshold
from kdpl.photos.fitting.candidates import Candidate, vocabulary_for
from kdpl.photos.fitting.compare import Comparison, Row, compare, measured, sentence_rows
from kdpl.photos.fitting.features import Features
from kdpl.photos.fitting.plan import Plan
from kdpl.photos.labels import CHOSEN_BY, REPORTED, TRAIN
from kdpl.photos.waiting import Doing

if TYPE_CHECKING:
    from kdpl.photos.fitting.run import Fit

WIDTH = 120  # of printed text
MOST_TRAIN = 1000  # photos of the training by which the best sentence is chosen


class Learned:
    """What a candidate has learned, on the student's CLIP."""

    def __init__(self, plan: Plan, candidate: Candidate, clip: Clip):
        self.candidate, self.plan = candidate, plan
        read = read_bundle(plan.folder(candidate))
        self.bundle: Bundle = dataclasses.replace(read, classnames=plan.names, decision=Decision(), comparison={})
        options = fitting_options(self.bundle, describe(plan.student), plan.student)
        self.encoder = NameEncoder(learned_student(self.bundle, clip, options, plan.student, "Start the fit again."))

    def features(self, photos: Features) -> Tensor:
        """Return the image features `(N, d)` of photos: those of the pass unless the image tower has learned prompts."""
        if self.encoder.images_are_frozen:
            return photos.frozen
        pixels, rows = self.bundle.preprocessing, []
        normalize = Normalize(pixels.mean, pixels.std)
        for batch in Decoder(pixels).batches([str(self.plan.photos / name) for name in photos.names], 32):
            images = normalize(stacked_pixels(batch).to(self.encoder.student.clip.device))
            rows.append(self.encoder.image_features(images).cpu())
        return torch.cat(rows)


@torch.no_grad()
def _logits(encoder: NameEncoder, names: Sequence[str], features: Tensor) -> Tensor:
    """Return the logits `(N, C)` of image features `(N, d)`."""
    clip, prepared, rows = encoder.student.clip, encoder.prepare(names), []
    text = None if encoder.depends_on_images else encoder.features(prepared)
    for part in features.to(clip.device).split(64):
        rows.append(similarity_logits(clip.logit_scale, part, encoder.features(prepared, part) if text is None else text).cpu())
    return torch.cat(rows)


def finish(fit: "Fit", sentences: Sequence[str]) -> None:
    """Compare what was learned with sentences, these among them, calibrate, and write what is used into the bundle and card."""
    learned = [Learned(fit.plan, candidate, fit.clip) for candidate in fit.trained]
    comparison, used, content = None, learned[-1], {}
    if not fit.plan.agnostic:
        with Doing("Comparing with hand-written sentences", 1, "sentence", fit.quiet) as doing:
            comparison = _compared(fit, learned, sentences, doing)
        used = next((each for each in learned if each.candidate.key == comparison.kept.learned), used)
        print_comparison(comparison)
        photos = len(fit.parts[REPORTED].names)
        content = {"photos": photos, "rows": comparison.table(), "verdict": comparison.verdict}
    with Doing("Calibrating", quiet=fit.quiet):
        decision, lines = calibrated(fit, comparison, used)
    if fit.plan.agnostic and decision.threshold is None:
        raise ValueError(
            f"{lines[-1]} With a single class name nothing else can be predicted: give more names, or other photos."
        )
    print("", *map(_paragraph, lines), sep="\n")
    write_bundle(fit.plan.output, dataclasses.replace(used.bundle, decision=decision, comparison=content))


def _compared(fit: "Fit", learned: Sequence[Learned], sentences: Sequence[str], doing: Doing) -> Comparison:
    def truth(photos: Features) -> Tensor:
        return fit.teacher.logits(photos.teacher.to(fit.clip.device), fit.clip.logit_scale).cpu()

    plan, parts = fit.plan, fit.parts
    train = _some(parts[TRAIN])
    held = {part: (parts[part].frozen, truth(parts[part])) for part in (CHOSEN_BY, REPORTED)}
    rows = sentence_rows(fit.clip, plan.names, plan.template, sentences, held, (train.frozen, truth(train)), doing.reached)
    for each in learned:
        logits = {part: _logits(each.encoder, plan.names, each.features(parts[part])) for part in held}
        on = {part: measured(logits[part], held[part][1]) for part in held}
        rows.append(Row(each.candidate.title, [], each.candidate.key, on))
    return compare(rows)


def _some(photos: Features) -> Features:
    return photos.of(photos.names[:MOST_TRAIN])


def _paragraph(text: str) -> str:
    """Return a text in lines of `WIDTH`."""
    return textwrap.fill(on_one_line(text), WIDTH, break_long_words=False)


def print_comparison(comparison: Comparison) -> None:
    rows = []
    for row in comparison.rows:
        on, used = row.on[REPORTED], "used" if row is comparison.kept else ""
        agreement = f"{on.agreement:.1f} ± {on.error:.1f}"
        rows.append([used, row.label, agreement, f"{on.divergence:.3f}", f"{row.on[CHOSEN_BY].agreement:.1f}"])
    reported, chosen = (len(comparison.kept.on[part].agrees) for part in (REPORTED, CHOSEN_BY))
    about = f"Did it help? Agreement with the teacher on {reported:,} held-out photos; {chosen:,} others choose the best"
    print("", about, "", sep="\n")
    print(tabulate(rows, ["", "", "same name (%)", "divergence", "to choose (%)"], disable_numparse=True))
    print("", _paragraph(comparison.verdict), sep="\n")


def calibrated(fit: "Fit", comparison: Comparison | None, used: Learned) -> tuple[Decision, list[str]]:
    """Return the decision: what is used, the temperature, and the threshold against other names; and lines about them."""
    teacher, names = fit.teacher, fit.plan.names
    decision, lines = Decision(classnames=list(names)), []
    if comparison is not None:
        held = (CHOSEN_BY, REPORTED)
        seen = torch.cat([fit.parts[part].teacher for part in held]).to(teacher.clip.device)
        theirs = similarity_logits(teacher.clip.logit_scale, seen, teacher.text_features).cpu()
        temperature = fit_temperature(torch.cat([comparison.kept.on[part].logits for part in held]), theirs)
        decision = dataclasses.replace(decision, sentences=comparison.kept.sentences, temperature=temperature)
        lines.append(f"Calibrated: --calibrated divides logits by {temperature:.2f}, fitted to the teacher's probabilities.")
    if not decision.sentences and used.encoder.depends_on_images:
        lines.append("There is no threshold to reject photos by: these prompts give every image its own text.")
        return decision, lines
    background = background_names(vocabulary_for(fit.plan.student), names)
    found = _threshold(fit, decision, used, background)
    lines.append(found.words())
    if found.separates:
        decision = dataclasses.replace(decision, background=background, threshold=found.value)
    return decision, lines


def _threshold(fit: "Fit", decision: Decision, used: Learned, background: list[str]) -> Threshold:
    """Fit the threshold on photos of the training and those that chose the best, and measure it on the reported ones."""
    encoder, clip = NameEncoder(used.encoder.student, decision.sentences), fit.teacher.clip
    others = Teacher(clip, background, fit.plan.template, (0.0,) * 3, (1.0,) * 3)
    scores, inside = {}, {}
    for part, photos in fit.parts.items():
        some = _some(photos)
        features = some.frozen if encoder.images_are_frozen else used.features(some)
        own = _logits(encoder, fit.plan.names, features)
        scores[part] = inside_score(own, _logits(encoder.for_other_names(), background, features))
        seen = some.teacher.to(clip.device)
        theirs = (similarity_logits(clip.logit_scale, seen, t.text_features).cpu() for t in (fit.teacher, others))
        inside[part] = inside_score(*theirs) > 0
    fitted = [torch.cat([values[TRAIN], values[CHOSEN_BY]]) for values in (scores, inside)]
    return fit_threshold(*fitted, scores[REPORTED], inside[REPORTED])
