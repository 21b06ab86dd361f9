"""What learns must be in an optimizer: a check of what a trainer has built."""

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer


def check_all_learn(models: Mapping[str, nn.Module], optimizers: Iterable[Optimizer], optim_cfg: Mapping[str, Any]) -> None:
    """Refuse a model with a learned parameter (`requires_grad`) that no optimizer has: it would stay as it is.

    Args:
        models: by name.
        optimizers: all of the trainer's.
        optim_cfg: the OPTIM node of a configuration.

    Raises:
        ValueError: the message names the parameters, and OPTIM.STAGED_LR if it is set, which leaves out what is not in a child
            module in Dassl's own code.
    """
    optimized = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    left_out: dict[int, str] = {}
    for model, module in models.items():
        for name, parameter in module.named_parameters():
            if parameter.requires_grad and id(parameter) not in optimized:
                left_out.setdefault(id(parameter), f"{model}.{name}")
    if not left_out:
        return
    names = list(left_out.values())
    shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    cause = "Give them to build_optimizer, or freeze them (requires_grad_(False))."
    if optim_cfg["STAGED_LR"]:
        cause = (
            f"OPTIM.STAGED_LR is True with OPTIM.NEW_LAYERS {optim_cfg['NEW_LAYERS']}: an installed Dassl then takes the "
            "parameters of child modules alone. Set STAGED_LR to False (OPTIM.STAGED_LR False)."
        )
    raise ValueError(f"In no optimizer, and would never learn: {shown}. {cause}")
