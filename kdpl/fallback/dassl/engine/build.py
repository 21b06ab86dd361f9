"""The registry of trainers."""

from yacs.config import CfgNode

from dassl.engine.base import TrainerBase
from dassl.utils import Registry
from dassl.utils.registry import check_choice

TRAINER_REGISTRY = Registry("TRAINER")


def build_trainer(cfg: CfgNode) -> TrainerBase:
    """Return the trainer that TRAINER.NAME names, built from `cfg`.

    Raises:
        ValueError: no trainer of that name is registered.
    """
    check_choice("TRAINER.NAME", cfg.TRAINER.NAME, TRAINER_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading trainer: {cfg.TRAINER.NAME}")
    return TRAINER_REGISTRY.get(cfg.TRAINER.NAME)(cfg)
