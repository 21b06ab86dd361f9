"""The configuration nodes that KDPL adds to a Dassl configuration."""

from yacs.config import CfgNode as CN


def _defaults() -> CN:
    """All nodes of the CoOp family with KDPL's own, under the names and with the defaults of the public forks."""
    trainer = CN()
    trainer.COOP = CN({"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end"})
    trainer.COCOOP = CN({"N_CTX": 16, "CTX_INIT": "", "PREC": "fp16"})
    trainer.VPT = CN({"N_CTX_VISION": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH_VISION": 1})
    trainer.MAPLE = CN({"N_CTX": 2, "CTX_INIT": "a photo of a", "PREC": "fp16", "PROMPT_DEPTH": 9})
    two_towers = {
        "N_CTX_VISION": 4,
        "N_CTX_TEXT": 4,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,
        "PROMPT_DEPTH_TEXT": 9,
    }
    trainer.PROMPTSRC = CN(
        two_towers | {"TEXT_LOSS_WEIGHT": 25, "IMAGE_LOSS_WEIGHT": 10, "GPA_MEAN": 15, "GPA_STD": 1}
    )
    trainer.IVLP = CN(two_towers | {"N_CTX_VISION": 2, "N_CTX_TEXT": 2})
    trainer.KDPL = CN({
        "TEACHER": "ViT-H-14-quickgelu",
        "CLASS_AGNOSTIC": False,
        "K_MAX": 1000,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "VOCABULARY": "imagenet21k",
        "EXCLUDE_CLASSNAMES": False,
        "SHOTS": "class",
        "LOSS": "symmetric",
        "TEMPERATURE": 1.0,
        "TEACHER_LOGIT_SCALE": "student",
    })
    dataset = CN({"SUBSAMPLE_CLASSES": "all", "TEMPLATE": ""})
    return CN({"TRAINER": trainer, "DATASET": dataset})


def extend_cfg(cfg: CN) -> None:
    """Add to `cfg`, in place, the configuration nodes and keys of KDPL that are missing from it.

    A fork's own values are kept: a node or key that exists already is left alone.

    Args:
        cfg: a Dassl configuration, as `dassl.config.get_cfg_default()` returns it, not frozen.
    """
    _add_missing(cfg, _defaults())


def _add_missing(cfg: CN, defaults: CN) -> None:
    for key, value in defaults.items():
        if key not in cfg:
            cfg[key] = value
        elif isinstance(value, CN):
            _add_missing(cfg[key], value)
