"""Trainings of a second or two in this process, whole and cut short, and what is compared of them."""

import csv

import pytest
import torch
from yacs.config import CfgNode

import kdpl.students
from kdpl.config.defaults import extend_cfg
from support import config

TINY = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAIN.PRINT_FREQ", 1000)

SMALL = ("DATALOADER.TRAIN_X.BATCH_SIZE", 6, "OPTIM.MAX_EPOCH", 3, "TEST.NO_TEST", True)  # 5 batches in an epoch
EVERY_STEP = ("TRAIN.CHECKPOINT_EVERY_MINUTES", 1e-9)

NOUNS = ["apple", "bread", "cake", "fish", "horse", "house", "lamp", "mushroom", "onion", "pizza", "shoe", "train", "tree"]


def build(trainer, output, *options, dataset="emoji_meals", seed=1):
    """Return a trainer of two epochs with one shot of the base classes."""
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    cfg = config(trainer, dataset, output, "--seed", seed, *TINY, "OPTIM.MAX_EPOCH", 2, *options)
    set_random_seed(seed)
    return build_trainer(cfg)


def parameters(trainer):
    """Return a copy of the learned parameters by name."""
    return {k: v.clone() for k, v in trainer.student.learned.state_dict().items()}


def assert_same(a, b):
    """Assert that two dictionaries of tensors are bit-identical."""
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a), [k for k in a if not torch.equal(a[k], b[k])]


def train(trainer, output, *options, **kwargs):
    """Build and train; return the trainer and its learned parameters, all of which have moved."""
    run = build(trainer, output, *options, **kwargs)
    before = parameters(run)
    run.train()
    after = parameters(run)
    assert_all_move(before, after)
    return run, after


def assert_all_move(before, after):
    """Assert that every learned parameter moves; the linear part of a kernel head is for `kdpl fit` alone."""
    assert not [name for name in after if torch.equal(before[name], after[name]) and name != "linear"]


class Killed(BaseException):
    """Stands for a process that ends between two operations."""


def die_at(run, step):
    """Make a run end before its `step`-th training step, counted from 0."""
    forward_backward, taken = run.forward_backward, []

    def counted(batch):
        if len(taken) == step:
            raise Killed
        taken.append(None)
        return forward_backward(batch)

    run.forward_backward = counted


def stop_after(run, epoch):
    """Train until an epoch, counted from 0, has ended, and end as Ctrl-C would."""
    finish = run.after_epoch

    def stopping():
        finish()
        if run.epoch == epoch:
            raise KeyboardInterrupt

    run.after_epoch = stopping
    with pytest.raises(KeyboardInterrupt):
        run.train()


def build_student(learner, clip, names=()):
    """Return a student with the defaults of its node, prompts no deeper than three layers."""
    cfg = CfgNode()
    extend_cfg(cfg)
    options = cfg.TRAINER[learner.upper()]
    for key in options:
        if key.startswith("PROMPT_DEPTH"):
            options[key] = 3
    torch.manual_seed(1)
    return getattr(kdpl.students, learner)(clip, options, names)


def trained(run):
    """Train, and return the learned parameters."""
    run.train()
    return parameters(run)


def history(output):
    """Return the rows of a run's history.csv."""
    with (output / "history.csv").open() as file:
        return list(csv.DictReader(file))
