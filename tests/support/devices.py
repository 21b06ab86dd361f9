"""Devices that a test runs on: the CPU, and a GPU where there is one."""

import pytest
import torch

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch can use")
DEVICES = ["cpu", pytest.param("cuda", marks=without_gpu)]


def on(device):
    """Return the options with which a training runs on a device."""
    return ("USE_CUDA", device == "cuda")


@pytest.fixture
def half_on_cpu(monkeypatch):
    """The rule that makes fp16 and amp fp32 on a CPU is lifted."""
    from kdpl.clip import precision

    monkeypatch.setattr(precision, "FP32_ON_CPU", ())
