"""MMA (Multi-Modal Adapter for Vision-Language Models, CVPR 2024): small networks beside the last blocks of both towers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.clip.prompt_layout import Layout
from kdpl.students.base import Student
from kdpl.students.pieces import TextContext, scale_gradient


class MMA(Student):
    """Learns, for each of the last layers, an adapter of each tower, whose middle part the two share."""

    node = "MMA"
    defaults = {"CTX_INIT": "a photo of a", "ADAPTER_DEPTH": 8, "ADAPTER_DIM": 32, "ADAPTER_SCALE": 0.001, "PREC": "fp16"}
    texts = {
        "ADAPTER_DEPTH": "Layers of each tower that have an adapter, the last ones; all if there are fewer.",
        "ADAPTER_DIM": "Width of the adapters' middle part.",
        "ADAPTER_SCALE": "Factor of what an adapter adds.",
    }
    model_name = "adapter_learner"
    beside_blocks = ("text", "image")

    def build(self, names: Sequence[str]) -> None:
        text, vision, dim = self.clip.text, self.clip.vision, self.options.ADAPTER_DIM
        self.context = TextContext(self.clip, self.options.CTX_INIT, 0, True)  # words alone, no learned token
        self.layers = range(min(text.depth, vision.depth))[-self.options.ADAPTER_DEPTH :]
        for kind, width in (("text_adapter", text.width), ("visual_adapter", vision.width), ("shared_adapter", 0)):
            # The published layers count from 1.
            self.learned.add_module(kind, nn.ModuleDict({f"{layer + 1}": adapter(width, dim) for layer in self.layers}))

    def beside(self, tower: Any, adapters: nn.ModuleDict) -> dict[int, Callable[[Tensor, Tensor], Tensor]]:
        """Return by layer what is added to the output of a tower's block."""
        scale, shared = self.options.ADAPTER_SCALE, self.learned.shared_adapter

        def added(layer: int, x: Tensor, out: Tensor) -> Tensor:
            own, middle = adapters[f"{layer + 1}"], shared[f"{layer + 1}"]
            y = own.up(middle(own.down(tower.norm(layer, scale_gradient(x, scale)))))  # (..., w)
            return scale_gradient(y * scale, 1 / scale)

        return {layer: partial(added, layer) for layer in self.layers}

    def text_features(self, prepared: Layout, image_features: Tensor | None = None) -> Tensor:
        return normalized(self.clip.text(prepared, beside=self.beside(self.clip.text, self.learned.text_adapter)))

    def image_features(self, images: Tensor) -> Tensor:
        return normalized(self.clip.vision(images, beside=self.beside(self.clip.vision, self.learned.visual_adapter)))


def adapter(width: int, dim: int) -> nn.Module:
    """Return the layers that a tower of a width has for itself, or, of width 0, the one that both share."""
    down, up = nn.Linear(width or dim, dim), nn.Linear(dim, width or dim)
    for linear in (down, up):
        nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(linear.bias)
    return nn.ModuleDict({"down": nn.Sequential(down, nn.ReLU()), "up": up}) if width else nn.Sequential(down, nn.ReLU())
