"""The learning rate of every epoch: a warm-up, then a step or cosine schedule."""

import math
from bisect import bisect_right
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from yacs.config import CfgNode

from kdpl.config.keys import check_key


def rate(epoch: int, optim_cfg: CfgNode, base_lr: float) -> float:
    """Return the learning rate of an epoch, counted from 0, of a base rate.

    The warm-up lasts WARMUP_EPOCH epochs. "constant": WARMUP_CONS_LR in all of them. "linear": WARMUP_MIN_LR in
    epoch 0, base_lr * epoch / WARMUP_EPOCH after it. With n = epoch - WARMUP_EPOCH (n = epoch if WARMUP_RECOUNT is
    False), the rate after the warm-up is

    - cosine: base_lr * (1 + cos(pi * n / MAX_EPOCH)) / 2,
    - single_step: base_lr * GAMMA ** (n // STEPSIZE), the last STEPSIZE if there are several, MAX_EPOCH if below 1,
    - multi_step: base_lr * GAMMA ** (how many of STEPSIZE are at most n).
    """
    warmup = max(optim_cfg.WARMUP_EPOCH, 0)
    if epoch >= warmup:
        return base_lr * _FACTORS[optim_cfg.LR_SCHEDULER](epoch - warmup * optim_cfg.WARMUP_RECOUNT, optim_cfg)
    if optim_cfg.WARMUP_TYPE == "constant":
        return optim_cfg.WARMUP_CONS_LR
    return base_lr * epoch / optim_cfg.WARMUP_EPOCH if epoch else optim_cfg.WARMUP_MIN_LR


class EpochSchedule(LRScheduler):
    """Sets the rates of `rate`, stepped once after every epoch.

    The base rate of a parameter group is its "lr" in the optimizer. The scheduler's state holds only numbers. It is not a
    `LambdaLR`, which multiplies: a constant warm-up is not the base rate times anything, to the last bit.

    Args:
        optim_cfg: the OPTIM node of a configuration.

    Raises:
        ValueError: as `check_schedule`.
    """

    def __init__(self, optimizer: Optimizer, optim_cfg: CfgNode):
        check_schedule(optim_cfg)
        self.optim_cfg = optim_cfg.clone()
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        return [rate(self.last_epoch, self.optim_cfg, base_lr) for base_lr in self.base_lrs]

    def state_dict(self) -> dict[str, Any]:
        # Without the configuration: safe loading would refuse it, and a resumed run has it anyway.
        return {key: value for key, value in super().state_dict().items() if key != "optim_cfg"}


def _cosine(n: int, optim_cfg: CfgNode) -> float:
    return (1 + math.cos(math.pi * n / optim_cfg.MAX_EPOCH)) / 2


def _single_step(n: int, optim_cfg: CfgNode) -> float:
    step = optim_cfg.STEPSIZE[-1]
    return optim_cfg.GAMMA ** (n // (step if step > 0 else optim_cfg.MAX_EPOCH))


def _multi_step(n: int, optim_cfg: CfgNode) -> float:
    return optim_cfg.GAMMA ** bisect_right(sorted(optim_cfg.STEPSIZE), n)


_FACTORS: dict[str, Callable] = {"single_step": _single_step, "multi_step": _multi_step, "cosine": _cosine}


def check_schedule(optim_cfg: CfgNode) -> None:
    """Raise a ValueError that names the key if a key of the schedule has an invalid value."""
    for key in ("LR_SCHEDULER", "WARMUP_TYPE"):
        check_key(f"OPTIM.{key}", optim_cfg[key])
    steps, least = optim_cfg.STEPSIZE, 1 if optim_cfg.LR_SCHEDULER == "multi_step" else -math.inf
    if not isinstance(steps, list | tuple) or not steps or not all(isinstance(step, int) and step >= least for step in steps):
        raise ValueError(
            f"OPTIM.STEPSIZE is {optim_cfg.STEPSIZE}, expected epochs after which the rate falls, such as (30,) or (30, 60)."
        )
    if not max(1, optim_cfg.WARMUP_EPOCH) <= optim_cfg.MAX_EPOCH:
        raise ValueError(
            f"OPTIM.MAX_EPOCH is {optim_cfg.MAX_EPOCH}, expected at least 1 epoch and the {optim_cfg.WARMUP_EPOCH} of "
            "OPTIM.WARMUP_EPOCH (-1 for none)."
        )
