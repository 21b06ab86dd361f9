"""Did learning help? Prompts and hand-written sentences compared by their agreement with the teacher, on held-out photos.

No label is needed: the measure is how often the likeliest name is the teacher's, and the divergence of the probabilities. The
best single sentence is chosen on the photos of the training, where the prompts were learned, so that on the held-out photos no
candidate has an advantage.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.classifier.classifier import Classifier
from kdpl.classifier.decoding import stacked_pixels
from kdpl.clip.model import similarity_logits
from kdpl.distill.teacher import Teacher
from kdpl.text.prompts import ensemble_features, sentence_features
from kdpl.text.templates import BY_DATASET, DEFAULT, fill, imagenet_templates
from kdpl.training.pixels import Normalize

MOST_TEXTS = 40_000  # sentences times names that are encoded; of more the first templates are taken
LEARNED = "learned prompts"


@dataclass
class Features:
    """The features of some photos: the student's without and with learned prompts, and the teacher's."""

    paths: list[str] = field(default_factory=list)
    frozen: Tensor | None = None  # (N, d)
    learned: Tensor | None = None  # (N, d)
    teacher: Tensor | None = None  # (N, d of the teacher)


def features_of(classifier: Classifier, teacher: Teacher, paths: Sequence[str], on_bad: Any) -> Features:
    """Compute the features of photos; those that cannot be read are left out and reported to `on_bad`."""
    normalize = Normalize(classifier.bundle.preprocessing.mean, classifier.bundle.preprocessing.std)
    found, rows = Features(), []
    for batch in classifier.decoder.batches(paths, 32, on_bad=on_bad):
        images = normalize(stacked_pixels(batch).to(classifier.device))
        student = classifier.student
        frozen = student.frozen_image_features(images)
        with torch.no_grad():
            learned = frozen if student.image_features_are_frozen else classifier.encoder.image_features(images)
        rows.append((frozen.cpu(), learned.cpu(), teacher.image_features(images).cpu()))
        found.paths += [item.image for item in batch]
    if rows:
        found.frozen, found.learned, found.teacher = (torch.cat(parts) for parts in zip(*rows, strict=True))
    return found


@dataclass
class Candidate:
    """A way to read the names, and how it agrees with the teacher on the held-out photos."""

    label: str
    sentences: list[str]  # empty: the learned prompts
    logits: Tensor  # (N, C)
    agrees: Tensor  # (N), 1.0 if the likeliest name is the teacher's
    divergence: float

    @property
    def agreement(self) -> float:
        return 100 * float(self.agrees.mean())

    @property
    def error(self) -> float:
        """Twice the standard error of the agreement, in percentage points."""
        p = float(self.agrees.mean())
        return 200 * (p * (1 - p) / len(self.agrees)) ** 0.5


@dataclass
class Comparison:
    """All candidates, the best one first in rank."""

    candidates: list[Candidate]
    kept: Candidate
    verdict: str

    def table(self) -> list[dict[str, Any]]:
        return [
            {
                "prompts": c.label,
                "agreement": round(c.agreement, 6),
                "error": round(c.error, 6),
                "divergence": round(c.divergence, 6),
                "used": c is self.kept,
            }
            for c in self.candidates
        ]


def compare(
    classifier: Classifier, teacher_scale: Any, teacher: Teacher, train: Features, held_out: Features, own: Sequence[str]
) -> Comparison:
    """Compare the learned prompts with sentences.

    Args:
        teacher_scale: of the teacher's logits, as in the training.
        train, held_out: features of the photos.
        own: sentences of the user.
    """
    names, device = classifier.classnames, classifier.device
    truth = {
        part: similarity_logits(teacher_scale, f.teacher.to(device), teacher.text_features).cpu()
        for part, f in (("train", train), ("held_out", held_out))
    }
    scale = classifier.student.logit_scale
    known = [DEFAULT, classifier.bundle.template or DEFAULT, *BY_DATASET.values(), *imagenet_templates()]
    templates = list(dict.fromkeys(known))
    templates = templates[: max(10, MOST_TEXTS // len(names))]
    texts = {t: _sentence(classifier, t, names) for t in dict.fromkeys([*templates, *own])}

    def candidate(label: str, sentences: list[str], text: Tensor) -> Candidate:
        logits = similarity_logits(scale, held_out.frozen.to(device), text).cpu()
        return _measured(label, sentences, logits, truth["held_out"])

    likeliest, on_train = truth["train"].argmax(1), {}
    for sentence, text in texts.items():
        agrees = similarity_logits(scale, train.frozen.to(device), text).cpu().argmax(1) == likeliest
        on_train[sentence] = float(agrees.float().mean())
    best = max(on_train, key=on_train.get)
    default = classifier.bundle.template or DEFAULT
    candidates = [candidate(f'"{default}"', [default], texts[default])]
    candidates += [candidate(f'"{t}" (yours)', [t], texts[t]) for t in own if t != default]
    if best not in (default, *own):
        candidates.append(candidate(f'"{best}" (best of {len(texts)} sentences on the training photos)', [best], texts[best]))
    mean = ensemble_features(classifier.clip, names, templates) if len(templates) > 1 else texts[default]
    candidates.append(candidate(f"mean of {len(templates)} sentences", templates, mean))
    learned = torch.cat([classifier.logits_of(part) for part in held_out.learned.to(device).split(64)])
    candidates.append(_measured(LEARNED, [], learned, truth["held_out"]))
    kept = max(candidates, key=lambda c: (c.agreement, -c.divergence))
    return Comparison(candidates, kept, _verdict(candidates, kept))


@torch.no_grad()
def _sentence(classifier: Classifier, template: str, names: list[str]) -> Tensor:
    with classifier.clip.autocast(frozen=True):
        return sentence_features(classifier.clip, fill(template, names))


def _measured(label: str, sentences: list[str], logits: Tensor, teacher: Tensor) -> Candidate:
    p, q = teacher.log_softmax(1), logits.log_softmax(1)
    both = [F.kl_div(a, b, log_target=True, reduction="batchmean") for a, b in ((q, p), (p, q))]
    divergence = sum(both) / 2
    return Candidate(label, sentences, logits, (logits.argmax(1) == teacher.argmax(1)).float(), float(divergence))


def _verdict(candidates: list[Candidate], kept: Candidate) -> str:
    """Return in words what is kept, and whether the differences mean anything."""
    learned = candidates[-1]
    other = max((c for c in candidates if c is not learned), key=lambda c: (c.agreement, -c.divergence))
    n, gap = len(learned.agrees), learned.agrees - other.agrees
    mean, error = 100 * float(gap.mean()), 200 * float(gap.std(unbiased=False)) / n**0.5
    sure = abs(mean) > error
    if kept is learned:
        words = f"The learned prompts are used: {mean:+.1f} points of agreement against {other.label}"
    else:
        words = f"Sentences are used, not the learned prompts: {kept.label}, {-mean:+.1f} points of agreement"
    words += f" (sampling error ± {error:.1f})."
    if not sure:
        words += " The difference is within the sampling error: on these photos the two are as good as each other."
    return f"{words} Agreement is not accuracy: the teacher errs, too."
