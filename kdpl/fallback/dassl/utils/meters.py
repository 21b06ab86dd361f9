"""Running averages of training values."""

from collections import defaultdict

import torch


class AverageMeter:
    """The latest value and the mean of all values so far."""

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.val = self.avg = self.sum = 0.0
        self.count = 0

    def update(self, val: float | torch.Tensor, n: int = 1) -> None:
        """Take in `val`, a number or a tensor of one element, which stands for `n` equal values."""
        self.val = val.item() if isinstance(val, torch.Tensor) else val
        self.sum += self.val * n
        self.count += n
        self.avg = self.sum / self.count


class MetricMeter:
    """An `AverageMeter` for each of several named values; as text, "loss 1.2000 (1.3000)" for each."""

    def __init__(self, delimiter: str = " "):
        self.meters: dict[str, AverageMeter] = defaultdict(AverageMeter)
        self.delimiter = delimiter

    def update(self, values: dict[str, float | torch.Tensor] | None) -> None:
        """Take in one value for each name; None changes nothing."""
        if values is None:
            return
        if not isinstance(values, dict):
            raise TypeError(
                f"forward_backward returned {type(values).__name__}, expected a dictionary of floats such as "
                "{'loss': 0.5}, or None."
            )
        for name, value in values.items():
            self.meters[name].update(value)

    def __str__(self) -> str:
        return self.delimiter.join(f"{name} {meter.val:.4f} ({meter.avg:.4f})" for name, meter in self.meters.items())
