"""The configuration that all trainers and data sets share."""

from yacs.config import CfgNode as CN

from kdpl.config.keys import ENGINE, UNREAD, defaults


def get_cfg_default() -> CN:
    """Return a new configuration with every key at its default."""
    return cfg_default.clone()


def clean_cfg(cfg: CN, trainer: str) -> None:
    """Remove the nodes of TRAINER other than this trainer's, in place: what is printed is shorter."""
    for key in [key for key in cfg.TRAINER if key not in ("NAME", trainer.upper())]:
        del cfg.TRAINER[key]


cfg_default = CN(defaults({**ENGINE, **UNREAD}))
