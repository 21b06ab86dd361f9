"""TaskRes (arXiv:2211.10277): the frozen text feature of every class, moved by a learned residual."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.clip.names import Architecture
from kdpl.students.base import ALWAYS, Student
from kdpl.text.prompts import sentence_features
from kdpl.text.templates import fill


class Rows(NamedTuple):
    """The learned rows of a list of class names, and their frozen features."""

    base: Tensor  # (C, d)
    index: Tensor | None  # (C) rows of the residuals; None: all, in their order


class TaskRes(Student):
    """Learns `text_feature_residuals (C, d)`, a shift of each class's text feature; no step runs a text tower.

    A text feature is base + RESIDUAL_SCALE * residual, normalised. As published, the base is the unnormalised feature of the
    class name in the data set's sentence. Other lists of names than that of the training may hold learned names alone.

    Raises:
        ValueError: there are no class names.
    """

    node = "TASKRES"
    defaults = {"RESIDUAL_SCALE": 0.5, "PREC": "fp16"}
    texts = {"RESIDUAL_SCALE": "Factor of the learned residuals before they are added to the text features; above 0."}
    image_features_are_frozen = True
    learns_class_specific = ALWAYS
    learned_for_each = "a vector"
    uses_template = True

    def build(self, names: Sequence[str]) -> None:
        if not names:
            raise ValueError("TaskRes learns a vector for each class and needs their names: give `names`.")
        self.learned.text_feature_residuals = nn.Parameter(torch.zeros(len(names), self.clip.embed_dim))

    @classmethod
    def check(cls, options: Mapping[str, Any], architecture: Architecture, name: str) -> None:
        super().check(options, architecture, name)
        if not options.get("RESIDUAL_SCALE", 1) > 0:
            raise ValueError(f"TRAINER.{cls.node}.RESIDUAL_SCALE is {options['RESIDUAL_SCALE']}, expected a number above 0.")

    @cached_property
    def base(self) -> Tensor:
        """The frozen features of all learned names, `(C, d)` in fp32."""
        with torch.autocast(self.clip.device.type, enabled=False):  # independent of the caller's autocast
            return sentence_features(self.clip, fill(self.template, self.names), normalize=False)

    def prepare(self, names: Sequence[str]) -> Rows:
        if list(names) == self.names:
            return Rows(self.base, None)
        index = torch.tensor(self.learned_rows(names), device=self.base.device)
        return Rows(self.base[index], index)

    def text_features(self, prepared: Rows, image_features: Tensor | None = None) -> Tensor:
        residuals = self.learned.text_feature_residuals  # (C, d)
        rows = residuals if prepared.index is None else residuals[prepared.index]
        return normalized(torch.add(prepared.base, rows, alpha=self.options.RESIDUAL_SCALE))
