"""What a trainer that is to learn without labels must be: its configuration, its optimizers, and the scale of its logits."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dassl.optim
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from kdpl.common import distributed
from kdpl.config.checks import check_config, check_extended
from kdpl.config.keys import ConfigError
from kdpl.distill.pseudo_labels import UnsupportedStepError
from kdpl.text.templates import template_for
from kdpl.trainers.teachers import check_teacher
from kdpl.training.optimizers import check_all_learn
from kdpl.training.schedule import build_schedule, check_schedule

VALIDATION = "validation"  # in TRAINER.KDPL.ALLOW
LARGEST_LOG_SCALE = 10.0  # CLIP's logit_scale is 4.6 at most: a larger one is the scale itself


def check_distilled(cfg: CfgNode, wrapped: str) -> None:
    """Refuse what a wrapped trainer cannot do.

    Raises:
        ConfigError: the message names the key and the reason.
    """
    check_extended(cfg)
    check_config(cfg, "KDPL")
    check_schedule(cfg.OPTIM)
    template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
    check_teacher(cfg)
    if cfg.TRAINER.KDPL.CLASS_AGNOSTIC:
        raise ConfigError(
            f"TRAINER.KDPL.CLASS_AGNOSTIC True: the model of {wrapped} is bound to the class names it is built with, and "
            "cannot give logits over names chosen for each batch. Set it to False, or use a trainer of KDPL's own."
        )
    if cfg.TRAINER.KDPL.SHARD_CLASSES:
        raise ConfigError(f"TRAINER.KDPL.SHARD_CLASSES True: {wrapped} encodes all its names itself. Set it to False.")
    if distributed.launched():
        raise ConfigError(
            f"{wrapped} steps its own optimizers, so its gradients cannot be summed over several processes (torchrun): start "
            "one process, or use a trainer of KDPL's own."
        )
    if cfg.TEST.FINAL_MODEL == "best_val" and VALIDATION not in words(cfg.TRAINER.KDPL.ALLOW):
        raise ConfigError(
            f"TEST.FINAL_MODEL 'best_val' chooses the epoch by the labels of validation images: set it to 'last_step', or "
            f"TRAINER.KDPL.ALLOW {VALIDATION}, which allows {wrapped} to read those labels."
        )
    if cfg.DATALOADER.TRAIN_X.SAMPLER == "RandomClassSampler":
        raise ConfigError("DATALOADER.TRAIN_X.SAMPLER RandomClassSampler puts batches together by label. Use RandomSampler.")


def check_images(trainer: Any) -> None:
    """Refuse a loader of training batches that gives no images.

    Raises:
        UnsupportedStepError: its data set is of the trainer's own, such as of sentences.
    """
    dataset = trainer.train_loader_x.dataset
    if not hasattr(dataset, "data_source") or not hasattr(dataset, "transform"):
        raise UnsupportedStepError(
            f"{trainer.wrapped} trains on a data set of its own, {type(dataset).__name__}, expected the images of "
            "dassl.data.DatasetWrapper: the teacher looks at images. A trainer that learns from sentences alone learns without "
            "labels already."
        )


def check_built(trainer: Any) -> None:
    """Refuse a model that would not learn, or whose calls cannot be seen.

    Raises:
        ValueError: a learned parameter is in no optimizer, the model runs on several GPUs, or the order of names differs.
    """
    parts = {name: value for name, value in vars(trainer).items() if isinstance(value, nn.Module)}
    parallel = [name for name, part in parts.items() if any(isinstance(m, nn.DataParallel) for m in part.modules())]
    if parallel and torch.cuda.device_count() > 1:
        raise UnsupportedStepError(
            f"{trainer.wrapped} spreads {', '.join(parallel)} over {torch.cuda.device_count()} GPUs (nn.DataParallel), in "
            "whose threads no call can be replaced: let it see one, CUDA_VISIBLE_DEVICES=0."
        )
    names = getattr(trainer.dm.dataset, "classnames", None)
    ordered = [trainer.lab2cname[label] for label in sorted(trainer.lab2cname)]
    if names is not None and list(names) != ordered:
        raise ValueError(f"The data set's classnames are not in the order of its labels: {list(names)[:3]}, {ordered[:3]}.")
    optimizers = [x for x in [*trainer._optims.values(), *vars(trainer).values()] if isinstance(x, Optimizer)]
    models = {name: model for name, model in trainer._models.items() if model is not None}
    if isinstance(getattr(trainer, "model", None), nn.Module):
        models.setdefault("model", trainer.model)
    check_all_learn(models, optimizers, trainer.cfg.OPTIM)


def student_scale(trainer: Any) -> Tensor:
    """Return exp(logit_scale) of a trainer's model, in fp32.

    Raises:
        ValueError: there is none, or several that differ.
    """
    found = {}
    for model in [getattr(trainer, "model", None), *trainer._models.values()]:
        for name, module in model.named_modules() if isinstance(model, nn.Module) else ():
            if isinstance(scale := getattr(module, "logit_scale", None), Tensor) and scale.numel() == 1:
                found.setdefault(name.removeprefix("module").count(".") + bool(name.removeprefix("module")), []).append(scale)
        if found:
            break
    outermost = [float(scale.detach()) for scale in found[min(found)]] if found else []
    if not outermost or max(outermost) - min(outermost) > 1e-4 or max(outermost) > LARGEST_LOG_SCALE:
        what = f"logit_scale is {', '.join(map(str, sorted(set(outermost))))}" if outermost else "has no logit_scale"
        raise ValueError(
            f"The model of {trainer.wrapped}: {what}, expected one logarithm of CLIP's scale. Set "
            "TRAINER.KDPL.TEACHER_LOGIT_SCALE to 'own' or a number, which the teacher's logits are multiplied with."
        )
    return found[min(found)][0].detach().float().exp().reshape(())


def words(allow: str) -> list[str]:
    """Return the words of TRAINER.KDPL.ALLOW."""
    return allow.replace(",", " ").split()


def learned_state(trainer: Any) -> dict[str, Tensor]:
    """Return a copy of what a trainer's registered models learn."""
    models = {name: model for name, model in trainer._models.items() if model is not None}
    found = {f"{name}.{key}": p for name, model in models.items() for key, p in model.named_parameters() if p.requires_grad}
    return {key: p.detach().clone() for key, p in found.items()}


def check_unchanged(trainer: Any, before: dict[str, Tensor] | None) -> None:
    """Refuse a trainer that has changed what it learned since a test read labels.

    Raises:
        UnsupportedStepError: a parameter is another than `before`.
    """
    now = learned_state(trainer) if before else {}
    changed = [key for key, value in (before or {}).items() if key not in now or not torch.equal(value, now[key])]
    if changed:
        raise UnsupportedStepError(
            f"{trainer.wrapped} has changed {', '.join(changed[:3])} after a test had read labels, which may choose what it "
            "learns. Let it test when all is learned."
        )


@contextmanager
def working_schedulers(trainer_class: type) -> Iterator[None]:
    """Let `build_lr_scheduler` be KDPL's in the modules of a trainer's classes: Dassl's warm-up stops on today's PyTorch."""
    modules = {sys.modules.get(c.__module__) for c in trainer_class.__mro__} | {dassl.optim}
    theirs = {module: module.build_lr_scheduler for module in modules if hasattr(module, "build_lr_scheduler")}
    for module in theirs:
        module.build_lr_scheduler = build_schedule
    try:
        yield
    finally:
        for module, scheduler in theirs.items():
            module.build_lr_scheduler = scheduler
