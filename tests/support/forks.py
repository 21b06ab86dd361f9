"""Wrapped trainers of the styles in tests/support/fork_styles.py, in small, and what holds for each of them."""

import torch
from dassl.engine import build_trainer
from dassl.utils import set_random_seed

import kdpl.trainers
from kdpl.students import promptsrc
from kdpl.text import templates
from support import ROOT, config, fork_styles  # noqa: F401  registers them
from support.trainings import stop_after

SMALL = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAIN.PRINT_FREQ", 1000, "TEST.NO_TEST", True)
NODES = {"StyleMaPLe": "KDPL_MaPLe", "StylePromptSRC": "KDPL_PromptSRC"}


def build(trainer, output, *options, seed=1, file=None):
    file = file or NODES.get(trainer.removeprefix("KDPL_"), trainer if "Style" not in trainer else "KDPL_CoOp")
    views = ("DATALOADER.K_TRANSFORMS", 2) if "Views" in trainer else ()
    cfg = config("KDPL_CoOp", "emoji_meals", output, "--seed", seed, "OPTIM.MAX_EPOCH", 2, *SMALL, *options,
                 config_file=f"{ROOT}/configs/trainers/{file}/emoji.yaml")  # fmt: skip
    cfg.TRAINER.NAME = trainer
    if views:
        cfg.merge_from_list(list(views))
    set_random_seed(seed)
    kdpl.trainers.offer_distilled()
    return build_trainer(cfg)


def encode_few_sentences(monkeypatch):
    """Let PromptSRC, ours and the style, encode each class in 3 sentences instead of 60: most of its time."""
    many = templates.imagenet_templates
    monkeypatch.setattr(templates, "imagenet_templates", lambda count: many(count)[:3])
    monkeypatch.setattr(promptsrc, "FROZEN_TEMPLATES", 3)


def learned(trainer):
    return {f"{m}.{k}": v.detach().clone() for m, model in trainer._models.items() for k, v in model.state_dict().items()}


def check_resumed(style, folder):
    """A run that stops after an epoch goes on as the unbroken one."""
    options = ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1)
    unbroken = build(f"KDPL_{style}", folder / "a", *options)
    unbroken.train()
    stop_after(build(f"KDPL_{style}", folder / "b", *options), epoch=1)
    resumed = build(f"KDPL_{style}", folder / "b", *options)
    resumed.train()
    assert resumed.start_epoch == 2
    assert all(torch.equal(v, learned(resumed)[k]) for k, v in learned(unbroken).items())
