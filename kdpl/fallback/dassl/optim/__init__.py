"""Optimizers and learning-rate schedules from the OPTIM node of a configuration."""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer
from yacs.config import CfgNode

from dassl.optim.radam import RAdam
from kdpl.common.messages import did_you_mean
from kdpl.config.keys import OPTIMIZERS, ConfigError, check_choice
from kdpl.training.schedule import build_schedule as build_lr_scheduler

__all__ = ["build_lr_scheduler", "build_optimizer"]


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: Iterable[dict[str, Any]] | None = None
) -> Optimizer:
    """Return the optimizer that OPTIM.NAME names, over all parameters of a model, or over `param_groups`.

    With OPTIM.STAGED_LR, the child modules in NEW_LAYERS learn at LR and all other parameters at LR * BASE_LR_MULT.

    Args:
        model: a module, or parameters or groups of them as PyTorch's optimizers take.

    Raises:
        ConfigError: the optimizer is unknown, or NEW_LAYERS is empty or names something else than children of the model.
    """
    check_choice("OPTIM.NAME", optim_cfg.NAME, OPTIMIZERS)
    parameters = param_groups
    if parameters is None and optim_cfg.STAGED_LR:
        parameters = _staged(model, optim_cfg)
    elif parameters is None:
        parameters = model.parameters() if isinstance(model, nn.Module) else model
    betas = {"betas": (optim_cfg.ADAM_BETA1, optim_cfg.ADAM_BETA2)}
    momentum = {"momentum": optim_cfg.MOMENTUM}
    optimizer, own = {
        "adam": (optim.Adam, betas),
        "amsgrad": (optim.Adam, {**betas, "amsgrad": True}),
        "sgd": (optim.SGD, {**momentum, "dampening": optim_cfg.SGD_DAMPNING, "nesterov": optim_cfg.SGD_NESTEROV}),
        "rmsprop": (optim.RMSprop, {**momentum, "alpha": optim_cfg.RMSPROP_ALPHA}),
        "radam": (RAdam, betas),
        "adamw": (optim.AdamW, betas),
    }[optim_cfg.NAME]
    return optimizer(parameters, lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY, **own)


def _staged(model: nn.Module, optim_cfg: CfgNode) -> list[dict[str, Any]]:
    children, names = dict(model.named_children()), optim_cfg.NEW_LAYERS
    names = [names] if isinstance(names, str) else list(names)
    for name in names or [""]:
        if name not in children:
            raise ConfigError(
                f"OPTIM.NEW_LAYERS '{name}' is not one of the model's child modules ({', '.join(children) or 'it has none'})."
                f"{did_you_mean(name, children)} Name those that learn at LR, or set OPTIM.STAGED_LR to False."
            )
    new = [p for name in names for p in children[name].parameters()]
    new_ids = {id(p) for p in new}
    base = [p for p in model.parameters() if id(p) not in new_ids]
    return [{"params": base, "lr": optim_cfg.LR * optim_cfg.BASE_LR_MULT}, {"params": new}]
