"""The precision a CLIP computes in, from a PREC of the configuration: fp32, fp16, amp or bf16."""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

AUTOCAST = {"amp": torch.float16, "bf16": torch.bfloat16}  # for a PREC
FP32_ON_CPU = ("fp16", "amp")  # slow on a CPU; tests empty this, and PyTorch computes them there as on a GPU


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


def autocast(device: torch.device, dtype: torch.dtype | None) -> torch.autocast:
    """Return the context of one precision, whatever the one around it; None: that of the weights."""
    return torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None)


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


def no_gradients() -> AbstractContextManager:
    """Return the context of a frozen pass: inference mode, or what a compiled step takes in its place."""
    return torch.no_grad() if torch.compiler.is_compiling() else torch.inference_mode()
