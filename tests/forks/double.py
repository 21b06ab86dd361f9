"""A file of `--prepare`: what asks for single precision computes in double."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class InDoublePrecision(TorchFunctionMode):
    """While it is entered, code that asks for single precision computes in double, whose rounding is 1e-9 of that."""

    def __enter__(self) -> "InDoublePrecision":
        torch.set_default_dtype(torch.float64)
        self._float, Tensor.float = Tensor.float, Tensor.double  # a mode sees no calls of what it calls, such as a loss
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Tensor.float = self._float
        torch.set_default_dtype(torch.float32)

    def __torch_function__(self, func: Callable, types: tuple, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func is not Tensor.view:  # of bytes that were read from a file
            args, kwargs = tuple(map(_double, args)), {key: _double(value) for key, value in kwargs.items()}
        return func(*args, **kwargs)


def _double(value: Any) -> Any:
    return torch.float64 if value is torch.float32 else value


if "result" in globals():  # in a trial
    InDoublePrecision().__enter__()
