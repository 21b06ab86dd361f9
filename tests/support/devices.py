"""Devices that a test runs on: the CPU, and a GPU where there is one."""

import pytest
import torch

without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU that PyTorch can use")
DEVICES = ["cpu", pytest.param("cuda", marks=without_gpu)]


def on(device):
    """Return the options with which a training runs on a device."""
    return ("USE_CUDA", device == "cuda")


@pytest.fixture
def precisions_as_asked(monkeypatch):
    """fp16 and amp are computed on a CPU too, and fp32 on a GPU without TF32, to which cuDNN's convolutions may round it."""
    from kdpl.clip import model as clip_model

    monkeypatch.setattr(clip_model, "FP32_ON_CPU", ())
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")  # of processes that a test starts
