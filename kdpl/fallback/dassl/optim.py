"""Optimizers and learning-rate schedules from the OPTIM node of a configuration."""

from collections.abc import Iterable
from typing import Any

from torch import nn, optim
from torch.optim import Optimizer
from yacs.config import CfgNode

from kdpl.config.choices import OPTIMIZERS, check_choice
from kdpl.training.schedule import build_schedule as build_lr_scheduler

__all__ = ["build_lr_scheduler", "build_optimizer"]


def build_optimizer(
    model: nn.Module | Iterable, optim_cfg: CfgNode, param_groups: Iterable[dict[str, Any]] | None = None
) -> Optimizer:
    """Return the optimizer that OPTIM.NAME names, over all parameters of a model.

    Args:
        model: a module, or parameters or groups of them as PyTorch's optimizers take.
        optim_cfg: the OPTIM node of a configuration.
        param_groups: groups to optimize in place of the model's parameters.

    Raises:
        ValueError: the optimizer is unknown, or OPTIM.STAGED_LR is set, which only Dassl has.
    """
    check_choice("OPTIM.NAME", optim_cfg.NAME, OPTIMIZERS)
    if optim_cfg.STAGED_LR:
        raise ValueError(
            "OPTIM.STAGED_LR True is Dassl's, and the bundled engine is in use: install Dassl, or set it to False and give "
            "`param_groups` with rates of their own."
        )
    parameters = model.parameters() if isinstance(model, nn.Module) else model
    if param_groups is not None:
        parameters = param_groups
    optimizer, own = _class_and_settings(optim_cfg)
    return optimizer(parameters, lr=optim_cfg.LR, weight_decay=optim_cfg.WEIGHT_DECAY, **own)


def _class_and_settings(cfg: CfgNode) -> tuple[type[Optimizer], dict[str, Any]]:
    betas = {"betas": (cfg.ADAM_BETA1, cfg.ADAM_BETA2)}
    momentum = {"momentum": cfg.MOMENTUM}
    return {
        "adam": (optim.Adam, betas),
        "amsgrad": (optim.Adam, {**betas, "amsgrad": True}),
        "sgd": (optim.SGD, {**momentum, "dampening": cfg.SGD_DAMPNING, "nesterov": cfg.SGD_NESTEROV}),
        "rmsprop": (optim.RMSprop, {**momentum, "alpha": cfg.RMSPROP_ALPHA}),
        # Decoupled, as in the authors' code (arXiv:1908.03265), which Dassl has.
        "radam": (optim.RAdam, {**betas, "decoupled_weight_decay": True}),
        "adamw": (optim.AdamW, betas),
    }[cfg.NAME]
