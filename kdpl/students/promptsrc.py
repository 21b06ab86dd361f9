"""PromptSRC (arXiv:2307.06948): IVLP regularised towards the frozen CLIP, and averaged over epochs."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.clip.model import similarity_logits
from kdpl.clip.names import Architecture
from kdpl.students.base import Output
from kdpl.students.ivlp import IVLP
from kdpl.text.templates import imagenet_templates

FROZEN_TEMPLATES = 60


class PromptSRC(IVLP):
    """IVLP with three regularisers towards the frozen CLIP and Gaussian-weighted prompt aggregation over epochs."""

    node = "PROMPTSRC"
    defaults = {
        "N_CTX_VISION": 4,
        "N_CTX_TEXT": 4,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9,
        "TEXT_LOSS_WEIGHT": 25,
        "IMAGE_LOSS_WEIGHT": 10,
        "GPA_MEAN": 15,
        "GPA_STD": 1,
    }
    texts = {
        "TEXT_LOSS_WEIGHT": "Weight of the distance of the text features to the frozen ones.",
        "IMAGE_LOSS_WEIGHT": "Weight of the distance of the image features to the frozen ones.",
        "GPA_MEAN": "Epoch of the largest weight in the average over epochs.",
        "GPA_STD": "Width of these weights in epochs; above 0.",
    }
    reads_frozen_image_features = True

    def build(self, names: Sequence[str]) -> None:
        super().build(names)
        self.average: dict[str, Tensor] = {}
        self._inside_epoch = False  # a loss was computed since the last `end_epoch`

    @classmethod
    def check(cls, options: Mapping[str, Any], architecture: Architecture, name: str) -> None:
        super().check(options, architecture, name)
        if options["GPA_STD"] <= 0:
            raise ValueError(f"TRAINER.PROMPTSRC.GPA_STD is {options['GPA_STD']}, expected a positive number of epochs.")

    def regularisers(self, output: Output, frozen: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        """Return `loss_text`, `loss_image` and `loss_logits`, with their weights."""
        if torch.is_grad_enabled():
            self._inside_epoch = True
        g0 = self.frozen_text_features(names, imagenet_templates(FROZEN_TEMPLATES))  # (C, d)
        log_s0 = F.log_softmax(similarity_logits(self.logit_scale, frozen, g0), dim=-1)  # (B, C)
        log_s = F.log_softmax(output.logits.float(), dim=-1)  # (B, C)
        return {
            "loss_text": self.options.TEXT_LOSS_WEIGHT * F.l1_loss(output.text_features, g0),
            "loss_image": self.options.IMAGE_LOSS_WEIGHT * F.l1_loss(output.image_features, frozen),
            "loss_logits": (log_s0.exp() * (log_s0 - log_s)).mean(),  # the sum over all entries, divided by B * C
        }

    def forward(
        self, images: Tensor | None, prepared: Any, text_features: Tensor | None = None, frozen: Tensor | None = None
    ) -> Output:
        if self._inside_epoch and not torch.is_grad_enabled():
            print(
                "Warning: PromptSRC is evaluated inside an epoch, but its prompts are an average over epochs: call "
                "student.end_epoch(epoch, epochs) after each epoch, counted from 0."
            )
            self._inside_epoch = False
        return super().forward(images, prepared, text_features, frozen)

    @torch.no_grad()
    def end_epoch(self, epoch: int, max_epoch: int) -> None:
        """Add this epoch's parameters to the weighted sum, which becomes the model after the last epoch."""
        super().end_epoch(epoch, max_epoch)
        self._inside_epoch = False
        weight = gaussian_weights(max_epoch, self.options.GPA_MEAN, self.options.GPA_STD)[epoch]
        for name, parameter in self.learned.named_parameters():
            previous = self.average.get(name, torch.zeros_like(parameter))
            self.average[name] = previous + weight * parameter
        if epoch == max_epoch - 1:
            self.learned.load_state_dict(self.average)

    def extra_state_dict(self) -> dict[str, Any]:
        return {"average": self.average} if self.average else {}

    def load_extra_state_dict(self, state: dict[str, Any]) -> None:
        device = self.text_prompts[0].device
        self.average = {name: value.to(device) for name, value in state.get("average", {}).items()}


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Return the weights N(epoch; mean, std) of epochs 1..E, normalised to sum 1."""
    exponents = [-0.5 * ((epoch - mean) / std) ** 2 for epoch in range(1, epochs + 1)]
    largest = max(exponents)  # subtracted, so that the weights do not all underflow if the mean is far away
    weights = [math.exp(e - largest) for e in exponents]
    return [w / sum(weights) for w in weights]
