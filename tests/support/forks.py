"""Wrapped trainers of the styles in tests/support/fork_styles.py, in small."""

from dassl.engine import build_trainer
from dassl.utils import set_random_seed

import kdpl.trainers
from support import ROOT, config, fork_styles  # noqa: F401  registers them

SMALL = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAIN.PRINT_FREQ", 1000, "TEST.NO_TEST", True)


def build(trainer, output, *options, seed=1):
    cfg = config("KDPL_CoOp", "emoji_meals", output, "--seed", seed, "OPTIM.MAX_EPOCH", 2, *SMALL, *options,
                 config_file=f"{ROOT}/configs/trainers/KDPL_CoOp/emoji.yaml")  # fmt: skip
    cfg.TRAINER.NAME = trainer
    if "Views" in trainer:
        cfg.merge_from_list(["DATALOADER.K_TRANSFORMS", 2])
    set_random_seed(seed)
    kdpl.trainers.offer_distilled()
    return build_trainer(cfg)


def learned(trainer):
    return {f"{m}.{k}": v.detach().clone() for m, model in trainer._models.items() for k, v in model.state_dict().items()}
