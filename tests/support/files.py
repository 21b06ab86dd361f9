"""What small files hold that several tests write: results, sweeps, archives, checkpoints."""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import zipfile
from pathlib import Path

import torch
from torch import nn

RUN = {
    "trainer": "KDPL_CoOp",
    "backbone": "ViT-B/32",
    "teacher": "ViT-H-14-quickgelu",
    "class_agnostic": False,
    "seed": 1,
    "shots": 16,
    "learned_parameters": 2048,
    "train_seconds": 12.5,
    "epoch": 50,
    "config": "SEED: 1\n",
}


def result(dataset: str = "EmojiMeals", accuracy: float = 50.0, **changes) -> dict:
    return {
        "dataset": dataset,
        "split": "test",
        "classes": "all",
        "source_domains": [],
        "target_domains": [],
        "num_classes": 60,
        "num_images": 480,
        "accuracy": accuracy,
        "error_rate": 100 - accuracy,
        "macro_f1": accuracy,
    } | changes


SHORT = """
protocol: base2new
trainers: [CoOp, KDPL_CoOp]
datasets: [emoji_meals]
seeds: [1, 2]
shots: 1
config: emoji
"""


def sweep_file(folder: Path, text: str = SHORT, **changes: str) -> Path:
    """Write a sweep's file, with keys changed, added, or left out where the value is empty."""
    lines = [line for line in text.strip().splitlines() if line.partition(":")[0] not in changes]
    path = folder / "some.yaml"
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in changes.items() if value)]) + "\n")
    return path


EIGHT = """
protocol: few_shot
trainers: [CoOp, KDPL_CoOp]
datasets: [emoji_meals, emoji_leisure]
seeds: [1, 2]
shots: 1
config: emoji
options:
  OPTIM.MAX_EPOCH: 1
  OPTIM.WARMUP_EPOCH: -1
  TRAIN.PRINT_FREQ: 1
  DATALOADER: {TRAIN_X: {BATCH_SIZE: 4}}
executor: {jobs: 2, gpus: 0}
"""


FILES = {"data/a.txt": b"first", "data/deep/er/b.bin": bytes(range(256)) * 40, "data/empty": b""}


def member(name: str, **attributes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info


def tar_of(files: dict[str, bytes], others: list[tarfile.TarInfo] = (), format: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as bundle:
        for name, content in files.items():
            bundle.addfile(member(name, size=len(content)), io.BytesIO(content))
        for info in others:
            bundle.addfile(info)
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], mode: int = 0) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, content in files.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            bundle.writestr(info, content)
    return buffer.getvalue()


HONEST = {
    "tar": tar_of(FILES),
    "gnu tar": tar_of(FILES, format=tarfile.GNU_FORMAT),
    "tar.gz": gzip.compress(tar_of(FILES)),
    "tar.bz2": bz2.compress(tar_of(FILES)),
    "tar.xz": lzma.compress(tar_of(FILES)),
    "zip": zip_of(FILES),
}


def learned(n=4, width=8):
    module = nn.Module()
    module.ctx = nn.Parameter(torch.randn(n, width))
    return module


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))
