"""The end of a fit: compare on the held-out photos, calibrate, write what is used into the bundle, and say it in words."""

import dataclasses
import textwrap
from collections.abc import Sequence

import torch
from torch import Tensor

from kdpl.classifier.bundle import Bundle, read_bundle, write_bundle
from kdpl.classifier.decision import Decision, inside_score
from kdpl.classifier.decoding import Decoder, stacked_pixels
from kdpl.classifier.learned import NameEncoder, fitting_options, learned_student
from kdpl.clip.inputs import Normalize
from kdpl.clip.loading import describe
from kdpl.clip.model import Clip, similarity_logits
from kdpl.common.safe_text import Lines, on_one_line, print, text_table
from kdpl.distill.teacher import Teacher
from kdpl.photos.fitting.calibrate import Threshold, background_names, fit_temperature, fit_threshold
from kdpl.photos.fitting.candidates import Candidate, vocabulary_for
from kdpl.photos.fitting.compare import CHOSEN_BY, REPORTED, Comparison, Row, compare, measured, sentence_rows
from kdpl.photos.fitting.features import Features
from kdpl.photos.fitting.plan import Plan
from kdpl.photos.waiting import Doing

WIDTH = 120  # of printed text
MOST_TRAIN = 1000  # photos of the training by which the best sentence is chosen


class Learned:
    """What a candidate has learned, on the student's CLIP.

    Args:
        folder: of its training.
        clip: loaded already.
    """

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

    def logits(self, features: Tensor) -> Tensor:
        """Return the logits `(N, C)` of image features `(N, d)`."""
        return _logits(self.encoder, self.plan.names, features)


@torch.no_grad()
def _logits(encoder: NameEncoder, names: Sequence[str], features: Tensor) -> Tensor:
    clip, prepared, rows = encoder.student.clip, encoder.prepare(names), []
    text = None if encoder.depends_on_images else encoder.features(prepared)
    for part in features.to(clip.device).split(64):
        rows.append(similarity_logits(clip.logit_scale, part, encoder.features(prepared, part) if text is None else text).cpu())
    return torch.cat(rows)


def finish(
    plan: Plan,
    clip: Clip,
    teacher: Teacher,
    parts: dict[str, Features],
    trained: Sequence[Candidate],
    own: Sequence[str],
    quiet: bool,
) -> None:
    """Compare and calibrate on the photos of a plan, and write what is used into the bundle and the card.

    Args:
        parts: features of the photos "train", CHOSEN_BY and REPORTED.
        trained: what was learned.
        own: sentences of the user, to be compared too.
    """
    learned = [Learned(plan, candidate, clip) for candidate in trained]
    if plan.agnostic:
        comparison, used = None, learned[0]
    else:
        with Doing("Comparing with hand-written sentences", 1, "sentence", quiet) as doing:
            comparison = _compared(plan, clip, teacher, parts, learned, own, doing)
        used = next((each for each in learned if each.candidate.key == comparison.kept.learned), learned[-1])
        print_comparison(comparison)
    with Doing("Calibrating", quiet=quiet):
        decision, lines = calibrated(plan, teacher, parts, comparison, used)
    if plan.agnostic and decision.threshold is None:
        raise ValueError(
            f"{lines[-1]} With a single class name nothing else can be predicted: give more names, or other photos."
        )
    print("", *(_paragraph(line) for line in lines), sep="\n")
    content = {} if comparison is None else {
        "photos": len(parts[REPORTED].names), "rows": comparison.table(), "verdict": comparison.verdict,
    }  # fmt: skip
    write_bundle(plan.output, dataclasses.replace(used.bundle, decision=decision, comparison=content))


def _compared(
    plan: Plan,
    clip: Clip,
    teacher: Teacher,
    parts: dict[str, Features],
    learned: Sequence[Learned],
    own: Sequence[str],
    doing: Doing,
) -> Comparison:
    def truth(photos: Features) -> Tensor:
        return teacher.logits(photos.teacher.to(clip.device), clip.logit_scale).cpu()

    held = {part: (parts[part].frozen, truth(parts[part])) for part in (CHOSEN_BY, REPORTED)}
    some = parts["train"].of(parts["train"].names[:MOST_TRAIN])
    rows = sentence_rows(clip, plan.names, plan.template, own, held, (some.frozen, truth(some)), doing.reached)
    for each in learned:
        on = {part: measured(each.logits(each.features(parts[part])), held[part][1]) for part in held}
        rows.append(Row(each.candidate.title, [], each.candidate.key, on))
    return compare(rows)


def _paragraph(text: str) -> Lines:
    """Return a text in lines of `WIDTH`."""
    return Lines(textwrap.fill(on_one_line(text), WIDTH, break_long_words=False))


def print_comparison(comparison: Comparison) -> None:
    rows = [
        [
            "used" if row is comparison.kept else "",
            row.label,
            f"{row.on[REPORTED].agreement:.1f} ± {row.on[REPORTED].error:.1f}",
            f"{row.on[REPORTED].divergence:.3f}",
            f"{row.on[CHOSEN_BY].agreement:.1f}",
        ]
        for row in comparison.rows
    ]
    reported, chosen = (len(comparison.kept.on[part].agrees) for part in (REPORTED, CHOSEN_BY))
    about = f"Did it help? Agreement with the teacher on {reported:,} held-out photos; {chosen:,} others choose the best"
    print("", about, "", sep="\n")
    print(text_table(rows, ["", "", "same name (%)", "divergence", "to choose (%)"], disable_numparse=True))
    print("", _paragraph(comparison.verdict), sep="\n")


def calibrated(
    plan: Plan, teacher: Teacher, parts: dict[str, Features], comparison: Comparison | None, used: Learned
) -> tuple[Decision, list[str]]:
    """Return the decision: what is used, the temperature, and the threshold against other names; and lines about them."""
    own_scale, device = teacher.clip.logit_scale, teacher.clip.device
    decision, lines = Decision(classnames=list(plan.names)), []
    if comparison is not None:
        held = (CHOSEN_BY, REPORTED)
        seen = torch.cat([parts[part].teacher for part in held]).to(device)
        theirs = similarity_logits(own_scale, seen, teacher.text_features).cpu()
        temperature = fit_temperature(torch.cat([comparison.kept.on[part].logits for part in held]), theirs)
        decision = dataclasses.replace(decision, sentences=comparison.kept.sentences, temperature=temperature)
        lines.append(f"Calibrated: --calibrated divides logits by {temperature:.2f}, fitted to the teacher's probabilities.")
    if not decision.sentences and used.encoder.depends_on_images:
        lines.append("There is no threshold to reject photos by: these prompts give every image its own text.")
        return decision, lines
    background = background_names(vocabulary_for(plan.student), plan.names)
    found = _threshold(plan, teacher, parts, decision, used, background)
    lines.append(found.words())
    if found.separates:
        decision = dataclasses.replace(decision, background=background, threshold=found.value)
    return decision, lines


def _threshold(
    plan: Plan, teacher: Teacher, parts: dict[str, Features], decision: Decision, used: Learned, background: list[str]
) -> Threshold:
    """Fit the threshold on photos of the training and those that chose the best, and measure it on the reported ones."""
    encoder = NameEncoder(used.encoder.student, decision.sentences)
    others = Teacher(teacher.clip, background, plan.template, (0.0,) * 3, (1.0,) * 3)
    scores, inside = {}, {}
    for part, photos in parts.items():
        some = photos.of(photos.names[:MOST_TRAIN])
        features = some.frozen if encoder.images_are_frozen else used.features(some)
        own = _logits(encoder, plan.names, features)
        scores[part] = inside_score(own, _logits(encoder.for_other_names(), background, features))
        seen = some.teacher.to(teacher.clip.device)
        theirs = (similarity_logits(teacher.clip.logit_scale, seen, t.text_features).cpu() for t in (teacher, others))
        inside[part] = inside_score(*theirs) > 0
    fitted = [torch.cat([values["train"], values[CHOSEN_BY]]) for values in (scores, inside)]
    return fit_threshold(*fitted, scores[REPORTED], inside[REPORTED])
