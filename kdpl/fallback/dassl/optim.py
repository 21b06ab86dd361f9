"""Optimizers and learning-rate schedules from the OPTIM node of a configuration."""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer
from yacs.config import CfgNode

from kdpl.config.keys import OPTIMIZERS, ConfigError, check_choice
from kdpl.training.schedule import EpochSchedule as build_lr_scheduler

__all__ = ["build_lr_scheduler", "build_optimizer"]


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: Iterable[dict[str, Any]] | None = None
) -> Optimizer:
    """Return the optimizer that OPTIM.NAME names, over all parameters of a model, or over `param_groups`.

    Args:
        model: a module, or parameters or groups of them as PyTorch's optimizers take.

    Raises:
        ConfigError: the optimizer is unknown, or only Dassl has what is asked for.
    """
    check_choice("OPTIM.NAME", optim_cfg.NAME, OPTIMIZERS)
    if optim_cfg.STAGED_LR:
        raise ConfigError("OPTIM.STAGED_LR is True: rates by child module need an installed Dassl, expected False.")
    parameters = param_groups
    if parameters is None:
        parameters = model.parameters() if isinstance(model, nn.Module) else model
    betas = {"betas": (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)}
    momentum = {"momentum": optim_cfg.MOMENTUM}
    optimizer, own = {
        "adam": (optim.Adam, betas),
        "amsgrad": (optim.Adam, {**betas, "amsgrad": True}),
        "sgd": (optim.SGD, {**momentum, "dampening": optim_cfg.SGD_DAMPNING, "nesterov": optim_cfg.SGD_NESTEROV}),
        "rmsprop": (optim.RMSprop, {**momentum, "alpha": optim_cfg.RMSPROP_ALPHA}),
        "radam": (optim.RAdam, {**betas, "decoupled_weight_decay": True}),
        "adamw": (optim.AdamW, betas),
    }[optim_cfg.NAME]
    return optimizer(parameters, lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY, **own)
