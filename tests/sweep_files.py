"""Sweep files that the tests of sweeps share, on this machine and on Slurm."""

from pathlib import Path

SHORT = """
protocol: base2new
trainers: [CoOp, KDPL_CoOp]
datasets: [emoji_food]
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
datasets: [emoji_food, emoji_activities]
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
