"""A few images whose class is known, learned by cross-entropy beside the distillation on all images."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.common.files import key_of
from kdpl.students import Student
from kdpl.students.base import Output


@dataclass(frozen=True)
class Labelled:
    """Images with labels, by the frozen student's features. Every step takes all of them, so that no order has to be resumed.

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
        name = type(student).__name__
        if class_agnostic:
            raise ValueError("Labels are of class names, and class-agnostic training has none: leave one of the two out.")
        if student.closed_form:
            raise ValueError(f"{name} takes labels as answers of its own photos (`agree`, `fixed`): leave the labels out.")
        if not student.image_features_are_frozen or student.text_depends_on_images:
            why = "its image tower" if not student.image_features_are_frozen else "a text for every image"
            raise ValueError(
                f"{name} learns {why}, and labelled images are known by their frozen features alone: leave the labels out, or "
                "choose a learner such as TaskRes or CoOp."
            )
        if len(self.features) != len(self.labels) or not len(self.labels):
            raise ValueError(f"There are {len(self.features)} labelled images and {len(self.labels)} labels.")
        if not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(student.names):
            found = sorted(set(self.labels.tolist()))
            raise ValueError(f"Labels are places in the list of {len(student.names)} class names, got {found}.")

    @property
    def digest(self) -> str:
        """How many there are, and a digest of features, labels and weight, by which runs with other labels are told apart."""
        rows = [self.labels.tolist(), self.weight, self.features.double().sum(1).tolist()]
        return f"{len(self.labels)} ({key_of(rows).hex()})"

    def with_batch(self, frozen: Tensor) -> Tensor:
        """Return a batch's frozen features `(B, d)` and those of the labelled images, `(B + L, d)`."""
        return torch.cat([frozen, self.features.to(frozen)])

    def apart(self, output: Output, batch: int) -> tuple[Output, Tensor]:
        """Return the output of the batch alone, and the weighted cross-entropy of the labelled images."""
        logits, labels = output.logits, self.labels.to(output.logits.device)
        loss = self.weight * F.cross_entropy(logits[batch:].float(), labels)
        return output._replace(logits=logits[:batch], image_features=output.image_features[:batch]), loss
