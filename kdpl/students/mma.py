"""MMA (Multi-Modal Adapter for Vision-Language Models, CVPR 2024): small networks beside the last blocks of both towers."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from kdpl.clip.model import normalized
from kdpl.clip.names import Architecture
from kdpl.clip.prompt_layout import Layout
from kdpl.students.base import Student
from kdpl.students.pieces import TextContext


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

    @classmethod
    def check(cls, options: Mapping[str, Any], architecture: Architecture, name: str) -> None:
        if not architecture.is_vit or architecture.no_text_context or architecture.no_deep_text:
            raise ValueError(f"TRAINER.MMA needs two transformers, and '{name}' has not both: choose a plain ViT CLIP.")

    def build(self, names: Sequence[str]) -> None:
        text, vision, dim = self.clip.text, self.clip.vision, self.options.ADAPTER_DIM
        self.context = TextContext(self.clip, self.options.CTX_INIT, 0, True)  # words alone, no learned token
        depth = min(text.depth, vision.depth)
        self.layers = range(max(0, depth - self.options.ADAPTER_DEPTH), depth)
        for kind, width in (("text_adapter", text.width), ("visual_adapter", vision.width), ("shared_adapter", 0)):
            adapters = {f"{layer + 1}": adapter(width, dim) for layer in self.layers}  # published layers count from 1
            self.learned.add_module(kind, nn.ModuleDict(adapters))

    def beside(self, tower: Any, adapters: nn.ModuleDict) -> dict[int, Callable[[Tensor, Tensor], Tensor]]:
        """Return by layer what is added to the output of a tower's block."""
        scale = self.options.ADAPTER_SCALE

        def added(layer: int, x: Tensor) -> Tensor:
            own, middle = (modules[f"{layer + 1}"] for modules in (adapters, self.learned.shared_adapter))
            y = own.down(tower.norm(layer, scale_gradient(x, scale)))  # (..., ADAPTER_DIM)
            return scale_gradient(own.up(middle(y)) * scale, 1 / scale)

        return {layer: lambda x, out, layer=layer: added(layer, x) for layer in self.layers}

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


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """Return x, through which a gradient passes times a factor."""
    return x.detach() + factor * (x - x.detach())
