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
        if class_agnostic or student.closed_form or student.text_depends_on_images or not student.image_features_are_frozen:
            raise ValueError(
                f"Labels cannot be learned beside {type(student).__name__}{', class-agnostic' if class_agnostic else ''}: they "
                "are of class names, and their images are known by frozen features alone. Leave the labels out, or choose a "
                "learner such as TaskRes or CoOp."
            )
        places = range(len(student.names))
        if len(self.features) != len(self.labels) or not {*self.labels.tolist()} <= {*places}:
            raise ValueError(
                f"{len(self.features)} labelled images have the labels {self.labels.tolist()}, expected one place in the list "
                f"of {len(places)} class names for each."
            )

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
