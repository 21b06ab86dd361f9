"""The objectives of a training step: KDPL's distillation without labels, and cross-entropy for the baselines.

    objective = Distillation(student, teacher, names)
    loss, terms = objective(images)
    loss.backward()

The trainers, the calculator and the benchmarks all call these; no other copy of the step exists.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.model import Clip
from kdpl.common.files import key_of
from kdpl.distill.given import GivenTeacher
from kdpl.distill.loss import Loss, check_loss, distillation_loss, mean_logits
from kdpl.distill.selection import SelectionReport, select_names
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.students import Student
from kdpl.students.base import prepare_names

Terms = dict[str, Tensor]
LENGTH_TOLERANCE = 0.01  # features cached in half precision are within 0.001


@dataclass(frozen=True)
class Labelled:
    """A few images whose class is known, learned by cross-entropy beside the distillation on all images.

    They are known by the frozen student's features, and every step takes all of them, so that no order has to be resumed.

    Attributes:
        features: normalised, `(L, d)`.
        labels: `(L)`, places in the list of class names.
        weight: of their mean cross-entropy beside the distillation loss.
    """

    features: Tensor
    labels: Tensor
    weight: float = 1.0

    def check(self, student: Student, class_agnostic: bool) -> None:
        """Refuse a training that cannot use them.

        Raises:
            ValueError: the message says why.
        """
        if class_agnostic or student.closed_form or student.text_depends_on_images or not student.image_features_are_frozen:
            raise ValueError(
                f"Labels cannot be learned beside {type(student).__name__}{', class-agnostic' if class_agnostic else ''}: they "
                "are of class names, and their images are known by frozen features alone. Leave the labels out, or choose a "
                "learner such as TaskRes or CoOp."
            )
        if len(self.features) != len(self.labels) or not {*self.labels.tolist()} <= {*range(len(student.names))}:
            raise ValueError(
                f"{len(self.features)} labelled images have the labels {self.labels.tolist()}, expected one place in the list "
                f"of {len(student.names)} class names for each."
            )

    @property
    def digest(self) -> str:
        """How many there are, and a digest of features, labels and weight, by which runs with other labels are told apart."""
        rows = [self.labels.tolist(), self.weight, self.features.double().sum(1).tolist()]
        return f"{len(self.labels)} ({key_of(rows).hex()})"

    def loss(self, logits: Tensor) -> Tensor:
        """Return the weighted cross-entropy of their logits `(L, C)`."""
        return self.weight * F.cross_entropy(logits.float(), self.labels.to(logits.device))


class Objective:
    """A student's loss on a batch.

    Args:
        student: the prompt learner.
        names: the class names (C).
        shard_classes: in a job of several ranks, each encodes a share of the names.
        prepared: the student's constants of all names are computed once; else each batch has names of its own.
    """

    selection: SelectionReport | None = None  # counts of the selected names, in class-agnostic training
    lengths_checked = False  # of features that are given

    def __init__(self, student: Student, names: Sequence[str], shard_classes: bool = False, prepared: bool = True):
        if len(names) < 2:
            raise ValueError(
                f"Training needs at least 2 class names, got {len(names)}: {list(names)}. Set DATASET.SUBSAMPLE_CLASSES all, "
                "or with TRAINER.KDPL.CLASS_AGNOSTIC a larger vocabulary."
            )
        if not student.closed_form and not any(p.requires_grad for p in student.learned.parameters()):
            raise ValueError(
                f"{type(student).__name__} has no learned parameter (requires_grad) in `student.learned`, so nothing would be "
                "trained: register them there in `build`."
            )
        self.student, self.names, self.shard_classes = student, list(names), shard_classes
        self.prepared = self.prepare(self.names) if prepared else None

    def prepare(self, names: Sequence[str]) -> Any:
        """Return the student's constants of class names, of this rank's share if ranks share them."""
        return prepare_names(self.student, names, self.shard_classes)

    def check_lengths(self, *given: Any) -> None:
        """Refuse features `(B, d)` that are not of length one: their logits would be of another scale."""
        self.lengths_checked = True
        for features in (x for some in given for x in (some if isinstance(some, list | tuple) else [some])):
            if isinstance(features, Tensor) and features.dim() == 2:
                lengths = features.detach().float().norm(dim=-1)
                if ((lengths - 1).abs() > LENGTH_TOLERANCE).any():
                    raise ValueError(
                        f"The features that were given have lengths from {lengths.min():.3g} to {lengths.max():.3g}, expected "
                        "1: normalise them, torch.nn.functional.normalize(features, dim=-1)."
                    )


class Distillation(Objective):
    """KDPL (arXiv:2407.03056): the divergence of a student from a frozen teacher over the same names, without labels.

    Args:
        student: the prompt learner.
        teacher: a frozen CLIP, a `Teacher` over these names, or several of them: the mean of their distributions is learned.
            Or any object with `names` and `logits(images or keys)`, see `kdpl.distill.given`.
        names: the class names; with `k_max` a vocabulary.
        template: the teacher's sentence, with `{}` for the name, or several (see `Teacher`); by default the student's.
        k_max: for class-agnostic training: in each batch only the teacher's `k_max` most probable names are used.
        loss: the name of one, by default "symmetric", or a function of student and teacher logits: see `distillation_loss`.
        temperature: divides both logits.
        logit_scale: the factor of the teacher's logits: "student" (as published), "own" or a number.
        shard_classes: in a job of several ranks, each encodes a share of the names.
        labelled: images whose labels are learned, too, by cross-entropy; None: no label is.

    Raises:
        ValueError: fewer than two names, nothing to learn, class-specific prompts with `k_max`, no teacher, the same twice, or
            other names; `labelled` cannot be used (`Labelled.check`); or `loss`, `temperature` or `logit_scale` is none.
    """

    def __init__(
        self,
        student: Student,
        teacher: Any,
        names: Sequence[str],
        *,
        template: str | Sequence[str] | None = None,
        k_max: int | None = None,
        loss: Loss = "symmetric",
        temperature: float = 1.0,
        logit_scale: str | float = "student",
        shard_classes: bool = False,
        labelled: Labelled | None = None,
    ):
        super().__init__(student, names, shard_classes, prepared=not k_max)
        check_loss(loss, temperature)
        if k_max and student.class_specific:
            raise ValueError(
                f"{type(student).__name__} has class-specific prompts, which cannot be learned for names that change with "
                "every batch: leave k_max out, or the class-specific prompts."
            )
        if hasattr(teacher, "names") and not isinstance(teacher, Clip | Teacher | Ensemble | GivenTeacher):
            teacher = GivenTeacher(teacher)
        if not isinstance(teacher, Teacher | Ensemble | GivenTeacher):
            given = [teacher] if isinstance(teacher, Clip) else list(teacher)
            how = template or student.template, student.clip.mean, student.clip.std, logit_scale, bool(k_max)
            members = [Teacher(member, self.names, *how) if isinstance(member, Clip) else member for member in given]
            teacher = members[0] if len(members) == 1 else Ensemble(members)
        if teacher.names != self.names:
            raise ValueError(f"The teacher's {len(teacher.names)} names differ from the objective's {len(names)}.")
        self.teacher, self.k_max, self.kind, self.temperature = teacher, k_max, loss, temperature
        self.selection = SelectionReport(self.names) if k_max else None
        self.labelled = labelled
        if labelled is not None:
            labelled.check(student, bool(k_max))

    def __call__(
        self,
        images: Tensor | None = None,
        *,
        teacher_features: Tensor | Sequence[Tensor] | None = None,
        frozen_features: Tensor | None = None,
        share: float = 1.0,
    ) -> tuple[Tensor, Terms]:
        """Return the loss of a batch, to call `backward()` on, and the terms to report.

        Args:
            images: `(B, 3, H, W)`, normalised for the student; None if all needed features are given.
            teacher_features: the teacher's image features `(B, d_T)`, if already computed; of several teachers a list. For a
                teacher of one's own the keys of the images.
            frozen_features: the frozen student's image features `(B, d)`, if already computed.
            share: this rank's fraction of the whole batch, in a job of several ranks.

        Returns:
            The loss, and scalars by name: `loss`, `loss_kl_forward`, `loss_kl_reverse`, the student's own regularisers, with
            labelled images `loss_labels`, and, if there are any of these, `loss_total`, their sum with `loss`. A student in
            closed form takes the batch and is solved for after the pass: until then the loss is 0, without terms.
        """
        student, names, prepared, frozen = self.student, self.names, self.prepared, frozen_features
        if not self.lengths_checked:
            self.check_lengths(teacher_features, frozen)
        if teacher_features is None:
            teacher_features = self.teacher.image_features(images)
        if frozen is None and student.reads_frozen_image_features:
            frozen = student.frozen_image_features(images)
        # (B, C), or (B, V) with k_max; of M teachers (M, B, ...)
        target = self.teacher.logits(teacher_features, student.logit_scale)
        if student.closed_form:
            target = mean_logits(target, self.temperature)  # (B, C)
            seen = [teacher_features] if isinstance(teacher_features, Tensor) else list(teacher_features)
            joined = torch.cat(seen, -1) / len(seen) ** 0.5  # a cosine is the mean of the teachers'
            student.collect(frozen, (target.float() / self.temperature).log_softmax(-1), joined)
            return target.new_zeros(()), {}
        with student.clip.autocast():
            if self.k_max:
                chosen, probabilities = select_names(target, self.k_max, share)  # (K,)
                self.selection.add(chosen, probabilities)
                names = [self.names[i] for i in chosen.tolist()]
                target, prepared = target[..., chosen], self.prepare(names)
            own: Terms = {}
            if self.labelled is None:
                output = student(images, prepared, frozen=frozen)
            else:  # behind the batch
                few, batch = self.labelled.features.to(frozen), len(frozen)
                joined = torch.cat([frozen, few])  # type: ignore[list-item]  # `Labelled.check` asks for a frozen tower
                output = student(images, prepared, frozen=joined)  # of B + L images
                own["loss_labels"] = self.labelled.loss(output.logits[batch:])
                output = output._replace(logits=output.logits[:batch], image_features=output.image_features[:batch])
            target = mean_logits(target, self.temperature) if target.dim() == 3 else target
            terms = distillation_loss(output.logits, target, self.kind, self.temperature)
            own = {**student.regularisers(output._replace(teacher_logits=target), frozen, names), **own}
        total = terms["loss"] + sum(own.values())
        return total, {**terms, **own, **({"loss_total": total} if own else {})}


class CrossEntropy(Objective):
    """Cross-entropy on labels, for the supervised baselines; `loss` includes the student's own regularisers."""

    def __call__(self, images: Tensor | None, labels: Tensor, *, frozen_features: Tensor | None = None) -> tuple[Tensor, Terms]:
        """Return the loss of a batch and the terms to report: `loss`, `acc` in percent, and the regularisers.

        Args:
            images: `(B, 3, H, W)`, normalised for the student.
            labels: `(B,)`.
            frozen_features: the frozen student's image features `(B, d)`, if already computed.
        """
        student, frozen = self.student, frozen_features
        if not self.lengths_checked:
            self.check_lengths(frozen)
        if frozen is None and student.reads_frozen_image_features:
            frozen = student.frozen_image_features(images)
        if student.closed_form:
            student.collect(frozen, F.one_hot(labels, len(self.names)).float().log())
            return frozen.new_zeros(()), {}
        with student.clip.autocast():
            output = student(images, self.prepared, frozen=frozen)
            own = student.regularisers(output, frozen, self.names)
            loss = F.cross_entropy(output.logits.float(), labels) + sum(own.values())
        accuracy = 100 * (output.logits.argmax(1) == labels).float().mean()
        return loss, {"loss": loss, "acc": accuracy, **own}
