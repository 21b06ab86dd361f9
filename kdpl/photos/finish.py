"""The end of a fit: compare on the held-out photos, calibrate, write what was found into the bundle, and say it in words."""

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import torch
from tabulate import tabulate

from kdpl.classifier.bundle import read_bundle, write_bundle
from kdpl.classifier.classifier import Classifier
from kdpl.classifier.decision import Decision, inside_score
from kdpl.clip.model import similarity_logits
from kdpl.common.images import BadImageError
from kdpl.distill.teacher import Teacher
from kdpl.photos.calibrate import background_names, fit_temperature, fit_threshold
from kdpl.photos.compare import Comparison, Features, compare, features_of
from kdpl.photos.plan import Plan, vocabulary_for


def finish(plan: Plan, trainer: Any, sentences: Sequence[str]) -> None:
    """Compare and calibrate on the photos of a plan, and write it all into the bundle and the card.

    Args:
        trainer: that has trained it; its teacher is used again.
        sentences: of the user, to be compared too.
    """
    bundle = dataclasses.replace(read_bundle(plan.output), classnames=plan.names, decision=Decision(), comparison={})
    classifier = Classifier(bundle, trainer.device)
    clip = trainer.objective.teacher.clip
    pixels = bundle.preprocessing
    teacher = Teacher(clip, plan.names, plan.template, pixels.mean, pixels.std, trainer.cfg.TRAINER.KDPL.TEACHER_LOGIT_SCALE)

    def on_bad(image: str, error: BadImageError) -> None:
        print(f"left out: {error}", file=sys.stderr)

    held_out, train = (
        features_of(classifier, teacher, [str(plan.photos / name) for name in names], on_bad)
        for names in (plan.held_out, plan.train[: max(400, len(plan.held_out))])
    )
    if not held_out.paths or not train.paths:
        raise ValueError("None of the photos can be read to compare: the prompts are learned, and nothing was measured.")
    comparison = None
    if not plan.agnostic:
        scale = teacher.scale(classifier.student.logit_scale)
        comparison = compare(classifier, scale, teacher, train, held_out, sentences)
        print_comparison(comparison, len(held_out.paths))
    kept = comparison.kept.sentences if comparison else []
    decision = calibrate(plan, classifier, teacher, comparison, [held_out, train], kept)
    content = {} if comparison is None else {
        "photos": len(held_out.paths), "rows": comparison.table(), "verdict": comparison.verdict,
    }  # fmt: skip
    write_bundle(plan.output, dataclasses.replace(bundle, decision=decision, comparison=content))


def print_comparison(comparison: Comparison, photos: int) -> None:
    rows = [
        ["used" if c is comparison.kept else "", c.label, f"{c.agreement:.1f} ± {c.error:.1f}", f"{c.divergence:.3f}"]
        for c in comparison.candidates
    ]
    print(f"\nDid it help? Agreement with the teacher on {photos:,} held-out photos\n")
    print(tabulate(rows, ["", "prompts", "same name (%)", "divergence"], disable_numparse=True))
    print(f"\n{comparison.verdict}")


@torch.no_grad()
def calibrate(
    plan: Plan, classifier: Classifier, teacher: Teacher, comparison: Comparison | None, photos: list[Features], kept: list[str]
) -> Decision:
    """Return the decision: what is kept, the temperature, and the threshold against other names."""
    temperature, held_out = None, photos[0]
    own_scale = teacher.clip.logit_scale
    if comparison is not None:
        truth = similarity_logits(own_scale, held_out.teacher.to(teacher.clip.device), teacher.text_features).cpu()
        temperature = fit_temperature(comparison.kept.logits, truth)
    decision = Decision(sentences=kept, temperature=temperature, classnames=list(plan.names))
    user = Classifier(dataclasses.replace(classifier.bundle, decision=decision), classifier.device)
    if user.encoder.depends_on_images or user.encoder.class_specific:
        print("There is no threshold to reject photos by: these prompts are for their own names or images alone.")
        return decision
    background = background_names(vocabulary_for(plan.student), plan.names)
    decision = dataclasses.replace(decision, background=background, threshold=0.0)
    user.bundle = dataclasses.replace(user.bundle, decision=decision)
    others = Teacher(teacher.clip, background, plan.template, (0.0,) * 3, (1.0,) * 3)
    scores, inside = [], []
    for part in photos:
        features = (part.frozen if user.encoder.images_are_frozen else part.learned).to(user.device)
        scale = user.student.logit_scale
        own = similarity_logits(scale, features, user.encoder.features(user.encoder.prepare(plan.names)))
        scores.append(inside_score(own, similarity_logits(scale, features, user.background_features)).cpu())
        seen = part.teacher.to(teacher.clip.device)
        theirs = (similarity_logits(own_scale, seen, t.text_features) for t in (teacher, others))
        inside.append((inside_score(*theirs) > 0).cpu())
    found = fit_threshold(torch.cat(scores), torch.cat(inside))
    print(
        f"\nNone of these: with --reject, predict keeps {found.kept:.0%} of the {found.inside:,} photos that the teacher takes "
        f"for one of the names, and rejects {found.rejected:.0%} of the {found.outside:,} others."
    )
    if temperature is not None:
        print(f"Calibrated: with --calibrated, logits are divided by {temperature:.2f}, fitted to the teacher's probabilities.")
    return dataclasses.replace(decision, threshold=found.value)
