"""The objectives of a training step: KDPL's distillation without labels, and cross-entropy for the baselines.

    objective = Distillation(student, teacher, names)
    loss, terms = objective(images)
    loss.backward()

The trainers, the calculator and the benchmarks all call these; no other copy of the step exists.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.model import Clip
from kdpl.distill.given import GivenTeacher, GivesLogits
from kdpl.distill.labelled import Labelled
from kdpl.distill.loss import Loss, check_loss, distillation_loss, mean_logits
from kdpl.distill.selection import SelectionReport, select_names
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.students import Student
from kdpl.students.base import Shard, prepare_names

Terms = dict[str, Tensor]
Step = Callable[..., tuple[Tensor, Terms]]
LENGTH_TOLERANCE = 0.01  # features cached in half precision are within 0.001


class Objective:
    """A student's loss on a batch.

    Args:
        student: the prompt learner.
        names: the class names (C).
        shard_classes: in a job of several ranks, each encodes a share of the names.
    """

    selection: SelectionReport | None = None  # counts of the selected names, in class-agnostic training

    def __init__(self, student: Student, names: Sequence[str], shard_classes: bool = False):
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
        self._compiled: Step | None = None
        self._calls = 0

    def _step(self, *batch: Any) -> tuple[Tensor, Terms]:
        """Return the loss of a batch and the terms to report."""
        raise NotImplementedError

    def compile(self, backend: str | Callable = "") -> None:
        """Run a step from the second on as one graph of `torch.compile`, on a card as CUDA graphs.

        The first step fills what is computed once. A batch of another size is compiled once more, and so is
        one that brings features in place of images. The backward pass of a step cannot be repeated.

        Args:
            backend: of `torch.compile`; by default inductor, on a CPU without a C++ compiler aot_eager.

        Raises:
            ValueError: the student's prompts depend on the images, or ranks share the class names.
        """
        if why := self.no_graph:
            raise ValueError(f"The step of {type(self.student).__name__} cannot be one graph: {why}.")
        options: dict[str, Any] = {"backend": backend} if backend else {}
        if not backend and self.student.clip.device.type == "cuda":
            options = {"mode": "reduce-overhead"}
        elif not backend and not shutil.which(os.environ.get("CXX", "g++")):
            options = {"backend": "aot_eager"}
        self._compiled = torch.compile(self._step, fullgraph=True, **options)

    @property
    def no_graph(self) -> str:
        """Why a step cannot be one graph; empty if it can."""
        if self.student.closed_form:
            return "what is learned is solved for"
        if self.student.text_depends_on_images:
            return "every image has prompts of its own"
        return "processes share the class names" if isinstance(self.prepared, Shard) else ""

    def _run(self, *batch: Any) -> tuple[Tensor, Terms]:
        self._calls += 1
        if self._calls == 1:
            _check_lengths(batch)
        if self._compiled is None or self._calls == 1:
            return self._step(*batch)
        torch.compiler.cudagraph_mark_step_begin()
        loss, terms = self._compiled(*batch)
        return loss, {name: term.detach().clone() for name, term in terms.items()}  # the next step has the same memory

    def _prepare(self, names: Sequence[str]) -> Any:
        return prepare_names(self.student, names, self.shard_classes)


def _check_lengths(batch: Sequence[Any]) -> None:
    """Refuse given features `(B, d)` that are not of length one: their logits would be of another scale."""
    for features in [x for given in batch for x in (given if isinstance(given, list | tuple) else [given])]:
        if isinstance(features, Tensor) and features.dim() == 2:
            lengths = features.detach().float().norm(dim=-1)
            if ((lengths - 1).abs() > LENGTH_TOLERANCE).any():
                raise ValueError(
                    f"The features that were given have lengths from {lengths.min():.3g} to {lengths.max():.3g}, expected 1: "
                    "normalise them, torch.nn.functional.normalize(features, dim=-1)."
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
        teacher: Clip | Teacher | Ensemble | Sequence[Clip | Teacher] | GivesLogits,
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
        super().__init__(student, names, shard_classes)
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
            if not given:
                raise ValueError("There is no teacher among []: give a CLIP, a Teacher, or several.")
            how = template or student.template, student.clip.mean, student.clip.std, logit_scale, bool(k_max)
            members = [Teacher(member, self.names, *how) if isinstance(member, Clip) else member for member in given]
            teacher = members[0] if len(members) == 1 else Ensemble(members)
        if teacher.names != self.names:
            raise ValueError(f"The teacher's {len(teacher.names)} names differ from the objective's {len(names)}.")
        self.teacher, self.k_max, self.kind, self.temperature = teacher, k_max, loss, temperature
        self.selection = SelectionReport(self.names) if k_max else None
        self.prepared = None if k_max else self._prepare(self.names)
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
            labelled images `loss_labels`, and, if there are any of these, `loss_total`, their sum with `loss`.
        """
        if self.student.closed_form:
            return self._collect(images, teacher_features, frozen_features)
        batch = images, teacher_features, frozen_features
        return self._run(*batch, share) if self.k_max else self._run(*batch)

    @torch.no_grad()
    def _collect(
        self, images: Tensor | None, teacher_features: Tensor | Sequence[Tensor] | None, frozen: Tensor | None
    ) -> tuple[Tensor, Terms]:
        """Give a batch to a student that is solved for after the pass; until then there is no loss."""
        if teacher_features is None:
            teacher_features = self.teacher.image_features(images)
        frozen = self.student.frozen_image_features(images) if frozen is None else frozen
        target = self.teacher.logits(teacher_features, self.student.logit_scale)
        target = mean_logits(target, self.temperature)  # (B, C)
        each = [teacher_features] if isinstance(teacher_features, Tensor) else list(teacher_features)
        joined = torch.cat(each, -1) / len(each) ** 0.5  # a cosine is the mean of the teachers'
        self.student.collect(frozen, (target.float() / self.temperature).log_softmax(-1), joined)
        return target.new_zeros(()), {}

    @property
    def no_graph(self) -> str:
        return "the names are selected for each batch" if self.k_max else super().no_graph

    def _step(
        self,
        images: Tensor | None,
        teacher_features: Tensor | Sequence[Tensor] | None,
        frozen: Tensor | None,
        share: float = 1.0,
    ) -> tuple[Tensor, Terms]:
        student, names, prepared = self.student, self.names, self.prepared
        if teacher_features is None:
            teacher_features = self.teacher.image_features(images)
        if frozen is None and student.reads_frozen_image_features:
            frozen = student.frozen_image_features(images)
        # (B, C), or (B, V) with k_max; of M teachers (M, B, ...)
        target = self.teacher.logits(teacher_features, student.logit_scale)
        with student.clip.autocast():
            if self.k_max:
                chosen, probabilities = select_names(target, self.k_max, share)  # (K,)
                self.selection.add(chosen, probabilities)
                names = [self.names[i] for i in chosen.tolist()]
                target, prepared = target[..., chosen], self._prepare(names)
            known = frozen if self.labelled is None else self.labelled.with_batch(frozen)
            output, extra = student(images, prepared, frozen=known), {}
            if self.labelled is not None:
                output, extra["loss_labels"] = self.labelled.apart(output, len(frozen))
            target = mean_logits(target, self.temperature) if target.dim() == 3 else target
            terms = distillation_loss(output.logits, target, self.kind, self.temperature)
            output = output._replace(teacher_logits=target)
            own = {**student.regularisers(output, frozen, names), **extra}
        total = terms["loss"] + sum(own.values())
        return total, {**terms, **own, **({"loss_total": total} if own else {})}


class CrossEntropy(Objective):
    """Cross-entropy on labels, for the supervised baselines; `loss` includes the student's own regularisers."""

    def __init__(self, student: Student, names: Sequence[str], shard_classes: bool = False):
        super().__init__(student, names, shard_classes)
        self.prepared = self._prepare(self.names)

    def __call__(self, images: Tensor | None, labels: Tensor, *, frozen_features: Tensor | None = None) -> tuple[Tensor, Terms]:
        """Return the loss of a batch and the terms to report: `loss`, `acc` in percent, and the regularisers.

        Args:
            images: `(B, 3, H, W)`, normalised for the student.
            labels: `(B,)`.
            frozen_features: the frozen student's image features `(B, d)`, if already computed.
        """
        if self.student.closed_form:
            frozen = self.student.frozen_image_features(images) if frozen_features is None else frozen_features
            self.student.collect(frozen, F.one_hot(labels, len(self.names)).float().log())
            return frozen.new_zeros(()), {}
        return self._run(images, labels, frozen_features)

    def _step(self, images: Tensor | None, labels: Tensor, frozen: Tensor | None) -> tuple[Tensor, Terms]:
        student = self.student
        if frozen is None and student.reads_frozen_image_features:
            frozen = student.frozen_image_features(images)
        with student.clip.autocast():
            output = student(images, self.prepared, frozen=frozen)
            own = student.regularisers(output, frozen, self.names)
            loss = F.cross_entropy(output.logits.float(), labels) + sum(own.values())
        accuracy = 100 * (output.logits.argmax(1) == labels).float().mean()
        return loss, {"loss": loss, "acc": accuracy, **own}
