"""A frozen CLIP with what is needed to feed it."""

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdpl.clip.blocks import UnsupportedTowerError
from kdpl.clip.preprocessing import Preprocessing, Tokenizer
from kdpl.clip.prompt_layout import Layout
from kdpl.clip.text_tower import HubText, TextTower, WholeText
from kdpl.clip.vision_tower import TimmViT, VisionTower

AUTOCAST = {"amp": torch.float16, "bf16": torch.bfloat16}  # for a PREC
AT_ONCE = 2**28  # bytes that are copied from a GPU together
FP32_ON_CPU = ("fp16", "amp")  # slow on a CPU; tests empty this, and PyTorch computes them there as on a GPU


@dataclass(eq=False)
class Clip:
    """A frozen CLIP in eval mode with what is needed to feed it.

    Attributes:
        model: the unmodified model of OpenAI's `clip` or of open_clip.
        name: what it was loaded from.
        preprocessing: how an image becomes its input.
        tokenizer: how a sentence becomes token ids.
        autocast_dtype: of the passes with learned prompts; None: the precision of the weights.
        frozen_autocast_dtype: of the passes in which nothing is learned.
        config: what it was built from, as open_clip's configurations have it, without its defaults and what weights show.
    """

    model: nn.Module
    name: str
    preprocessing: Preprocessing
    tokenizer: Tokenizer
    autocast_dtype: torch.dtype | None = None
    frozen_autocast_dtype: torch.dtype | None = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @property
    def resolution(self) -> int:
        """Side of its square input, in pixels."""
        return self.preprocessing.size[0]

    @property
    def mean(self) -> tuple[float, ...]:
        return self.preprocessing.mean

    @property
    def std(self) -> tuple[float, ...]:
        return self.preprocessing.std

    @cached_property
    def text(self) -> TextTower | WholeText | HubText:
        """Its text tower for prompts with learned vectors."""
        if type(getattr(self.model, "text", None)).__name__ == "HFTextEncoder":
            return HubText(self.model.text, self.tokenizer.context_length)
        tower = TextTower(self.model)
        return tower if tower.is_causal else WholeText(self.model)

    def layout(self, prompts: Sequence[Sequence[int]], class_specific: bool = False) -> Layout:
        """Return the constants of a list of prompts, ready for `text`."""
        return self.text.layout(prompts, self.tokenizer.pad, class_specific)

    def autocast(self, frozen: bool = False) -> torch.autocast:
        """Return the context that a pass with learned prompts, or a frozen one, runs in."""
        dtype = self.frozen_autocast_dtype if frozen else self.autocast_dtype
        return torch.autocast(self.device.type, dtype or torch.bfloat16, enabled=dtype is not None)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights, which is that of the image tower's convolution."""
        return self._convolution.dtype

    @cached_property
    def _convolution(self) -> Tensor:
        return next(p for p in self.model.visual.parameters() if p.dim() == 4)

    @property
    def device(self) -> torch.device:
        return self.model.logit_scale.device

    @property
    def embed_dim(self) -> int:
        """Width d of its features."""
        return self.text.embed_dim

    @property
    def logit_scale(self) -> Tensor:
        """exp(logit_scale), a scalar in fp32."""
        return self.model.logit_scale.detach().float().exp().squeeze()

    @cached_property
    def vision(self) -> VisionTower | TimmViT:
        """Its image tower for the prompted pass; UnsupportedTowerError if it takes no learned tokens."""
        return TimmViT(self.model.visual) if hasattr(self.model.visual, "trunk") else VisionTower(self.model.visual)

    def encode_text(self, ids: Tensor) -> Tensor:
        """Return the text features `(N, d)` of token ids as the model itself computes them, not normalised."""
        return _plain(self.model.encode_text)(ids)

    def image_features(self, images: Tensor) -> Tensor:
        """Return the image features `(B, d)`, not normalised, of normalised images `(B, 3, resolution, resolution)`."""
        return self._encode_image(images.to(self.dtype))

    def frozen_image_features(self, images: Tensor) -> Tensor:
        """Return the normalised image features `(B, d)` in fp32, without gradient and in the precision of frozen passes."""
        with torch.inference_mode(), self.autocast(frozen=True):
            features = normalized(self.image_features(images))
        return features.clone()  # unlike the inference tensor itself, its clone may take part in autograd

    @cached_property
    def _encode_image(self) -> Callable[[Tensor], Tensor]:
        with suppress(UnsupportedTowerError):
            if isinstance(self.vision, VisionTower):
                return self.vision
        return _plain(self.model.encode_image)

    @cached_property
    def weights_digest(self) -> str:
        """A digest of all weights, the same for fp32 and fp16."""
        digest = hashlib.sha256()
        for name, value in sorted(self.model.state_dict().items()):
            if value.is_floating_point():
                digest.update(f"{name} {tuple(value.shape)}\n".encode())
                digest.update(value.detach().half().cpu().contiguous().view(-1).numpy())
        return digest.hexdigest()

    @cached_property
    def design(self) -> dict[str, str]:
        """What changes its features and is not in its weights, in words, by name; names begin with the tower's."""
        p, design = self.preprocessing, {}
        for tower, part in (("image", "vision_cfg"), ("text", "text_cfg")):
            design[f"{tower} activation"] = "QuickGELU" if self.config.get("quick_gelu") else "GELU"
            design[f"{tower} options"] = json.dumps(self.config.get(part, {}), sort_keys=True, default=str)
        design["image resizing"] = f"{p.size[0]} x {p.size[1]}, {p.interpolation}, {p.resize_mode}"
        for name, values in (("mean", p.mean), ("std", p.std)):
            design[f"image {name}"] = ", ".join(f"{value:.6g}" for value in values)
        design["text tokenizer"] = self.tokenizer.digest[:16]
        design["text context"] = f"{self.tokenizer.context_length}"
        return design

    @property
    def identity(self) -> str:
        """A digest of weights and design: what is compared where two CLIPs could be mixed up."""
        return hashlib.sha256(f"{self.weights_digest} {json.dumps(self.design, sort_keys=True)}".encode()).hexdigest()

    def digest(self, tower: str) -> str:
        """Return a digest of the "text" or the "image" tower: its design, and types, shapes and values of its parameters."""
        design = {name: value for name, value in self.design.items() if name.startswith(tower)}
        image, digest = tower == "image", hashlib.sha256(json.dumps(design).encode())
        weights = [*self.model.named_parameters(), *(self.model.visual.named_buffers("visual") if image else ())]
        weights = [(n, v) for n, v in weights if n.startswith("visual") == image and not n.startswith("logit_")]
        for (name, value), content in zip(weights, _contents([value for _, value in weights]), strict=True):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(content.numpy())
        return digest.hexdigest()

    def compile(self) -> None:
        """Compile the pass from images to features with `torch.compile`; the first batch of a shape then takes a while."""
        self._encode_image = torch.compile(self._encode_image)


class Normalize:
    """Turns uint8 images into normalised floats on their device; floats count as normalised already.

    Args:
        mean, std: of RGB in 0..1.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]):
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (mean, std))

    def __call__(self, images: Tensor) -> Tensor:
        """Return `(B, 3, H, W)` in fp32, with the same operations as torchvision's `ToTensor` and `Normalize`."""
        if images.dtype != torch.uint8:
            return images
        if self._mean.device != images.device:
            self._mean, self._std = self._mean.to(images.device), self._std.to(images.device)
        return images.float().div_(255).sub_(self._mean).div_(self._std)


def _contents(tensors: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield the bytes of tensors, on the CPU; from a GPU many are copied at once."""
    waiting: list[Tensor] = []
    for i, tensor in enumerate(tensors):
        waiting.append(tensor.detach().contiguous().view(-1).view(torch.uint8))
        if i + 1 == len(tensors) or tensor.device.type == "cpu" or sum(map(len, waiting)) >= AT_ONCE:
            joined = torch.cat(waiting).cpu() if len(waiting) > 1 else waiting[0].cpu()
            yield from joined.split([len(each) for each in waiting])
            waiting = []


def _plain(encode: Callable[..., Tensor]) -> Callable[[Tensor], Tensor]:
    """Return an encoder of a model that does not normalise, as some do unless they are told."""
    return partial(encode, normalize=False) if "normalize" in inspect.signature(encode).parameters else encode


def normalized(features: Tensor) -> Tensor:
    """Return features `(..., d)` of length one, in fp32."""
    return F.normalize(features.float(), dim=-1)


def similarity_logits(scale: Tensor | float, image_features: Tensor, text_features: Tensor) -> Tensor:
    """Return scale times the products of features, in fp32 under any autocast.

    Args:
        image_features: `(B, d)`, normalised.
        text_features: `(C, d)`, or `(B, C, d)` where every image has its own, normalised.

    Returns:
        Logits `(B, C)`.
    """
    with torch.autocast(image_features.device.type, enabled=False):
        if text_features.dim() == 2:
            return scale * image_features.float() @ text_features.float().T
        return scale * torch.einsum("bd,bcd->bc", image_features.float(), text_features.float())


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware."""
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(check() for check in (getattr(torch.cpu, name, None) for name in checks) if check is not None)


def effective_precision(value: str, device_type: str, frozen: bool = False) -> str:
    """Return what a PREC becomes on a device: the same on a GPU.

    On a CPU, fp16 and amp become fp32, or bf16 for a frozen tower if the CPU has it.
    """
    if value in FP32_ON_CPU and device_type == "cpu":
        return "bf16" if frozen and cpu_has_bf16() else "fp32"
    return value


class NotFiniteError(ValueError):
    """A model's output holds NaN or infinite values."""


def check_finite(values: Tensor, what: str) -> Tensor:
    """Return the output of a model, unless it is none; on a GPU this waits for it.

    Raises:
        NotFiniteError: it holds NaN or infinite values.
    """
    if not torch.isfinite(values).all():
        raise NotFiniteError(
            f"The {what} hold NaN or infinite values, which is no prediction: weights or prompts are damaged, or too large for "
            "the precision. Load them again, or use PREC fp32."
        )
    return values
