"""CLIP-Adapter (arXiv:2110.04544): two linear layers over the frozen image feature, mixed with it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.students.base import Student


class CLIPAdapter(Student):
    """Learns `fc`, from a frozen image feature `(B, d)` to what is added to it; the text is the data set's sentence."""

    node = "CLIPADAPTER"
    defaults = {"REDUCTION": 4, "RATIO": 0.2, "PREC": "fp16"}
    texts = {"REDUCTION": "Width of the features over that between the two layers.", "RATIO": "Share of the adapted feature."}
    model_name = "clip_adapter"
    image_features_are_frozen = True  # no step runs the image tower: it is trained from cached features
    uses_template = True

    def build(self, names: Sequence[str]) -> None:
        d, reduction = self.clip.embed_dim, self.options.REDUCTION
        layers = nn.Linear(d, d // reduction, bias=False), nn.ReLU(), nn.Linear(d // reduction, d, bias=False), nn.ReLU()
        self.learned.fc = nn.Sequential(*layers)

    def prepare(self, names: Sequence[str]) -> Tensor:
        return self.frozen_text_features(names)

    def text_features(self, prepared: Tensor, image_features: Tensor | None = None) -> Tensor:
        return prepared

    def logits(self, image_features: Tensor, text_features: Tensor, prepared: Any) -> Tensor:
        mixed = self.options.RATIO * self.learned.fc(image_features) + (1 - self.options.RATIO) * image_features  # (B, d)
        return super().logits(normalized(mixed), text_features, prepared)
