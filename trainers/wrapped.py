"""Any Dassl trainer without labels: the cross-entropy of its own training step becomes KDPL's loss (docs/forks.md)."""

import copy
import json
import random
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import dassl.optim
import torch
from dassl.utils import set_random_seed
from torch import Tensor, nn
from yacs.config import CfgNode

from kdpl.common import distributed
from kdpl.common.files import atomic_write, key_of
from kdpl.config.checks import check_config, check_extended
from kdpl.config.keys import ConfigError
from kdpl.distill.loss import mean_logits
from kdpl.distill.pseudo_labels import DistilledStep, UnsupportedStepError, at_work
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.text.templates import template_for
from kdpl.trainers.evaluation import build_loaders
from kdpl.trainers.teacher_labels import TeacherLabels
from kdpl.trainers.teachers import check_teacher, clip_teacher
from kdpl.training.batches import SEEDS, epoch_seed
from kdpl.training.checkpoint import CheckpointError
from kdpl.training.schedule import EpochSchedule, check_schedule

FILE = "kdpl.json"  # beside a trainer's own checkpoints
LARGEST_LOG_SCALE = 10.0  # CLIP's logit_scale is 4.6 at most: a larger one is the scale itself
OF_THE_DATA = ("NAME", "NUM_SHOTS", "SUBSAMPLE_CLASSES", "TEMPLATE")
RUNS_ONLY = ("PREC", "COMPILE", "MAX_TEXT_ROWS", "CACHE_DIR")  # of TRAINER.KDPL: where and how fast it computes


class DistilledTrainer:
    """What `distilled` puts before a trainer class: the same trainer, whose step learns from a frozen teacher.

    Attributes:
        wrapped: the name of the trainer in the registry, which it sees as its TRAINER.NAME.
        teacher_view: which of several views of an image the teacher sees.
    """

    wrapped = ""
    teacher_view = 0
    _kdpl_said: set[tuple[str, str]] | None = None  # what labels were used for, as far as the log has it
    _kdpl_distilled = False  # whether a cross-entropy was the divergence
    _kdpl_chooses = True  # whether a test may still choose what is learned

    def __init__(self, cfg: CfgNode):
        check_extended(cfg)
        for key, given in pairwise(sys.argv):
            if key == "OPTIM.MAX_EPOCH" and given != str(cfg.OPTIM.MAX_EPOCH):
                print(f"{key} is {cfg.OPTIM.MAX_EPOCH}, which train.py sets itself, not {given} of the command line")
        self._kdpl_seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS)
        cfg = cfg.clone()
        cfg.defrost()
        cfg.TRAINER.NAME = self.wrapped
        cfg.freeze()
        self._kdpl_labels = TeacherLabels(cfg, self._kdpl_seed)
        with self._kdpl_labels.at_work():
            super().__init__(cfg)

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse what a wrapped trainer cannot do, before anything is loaded.

        Raises:
            ConfigError: the message names the key and the reason.
        """
        check_config(cfg, "KDPL")
        check_schedule(cfg.OPTIM)
        template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
        clip_teacher(cfg, self.wrapped)
        check_teacher(cfg)
        if cfg.TRAINER.KDPL.CLASS_AGNOSTIC or distributed.launched():
            raise ConfigError(
                f"{self.wrapped} is bound to the class names it is built with and steps its own optimizers: without "
                "TRAINER.KDPL.CLASS_AGNOSTIC, and in one process (no torchrun). KDPL's own trainers can do both."
            )
        if cfg.TEST.FINAL_MODEL == "best_val":
            raise ConfigError("TEST.FINAL_MODEL 'best_val' chooses by labels of validation images: set it to 'last_step'.")
        super().check_cfg(cfg)

    def build_data_loader(self) -> None:
        build_loaders(self, super().build_data_loader)

    def build_model(self) -> None:
        """Build it with KDPL's schedule: Dassl's warm-up stops on PyTorch 2.7, and no safe loading reads its state."""
        with ExitStack() as stack:
            for module in {sys.modules[c.__module__] for c in type(self).__mro__} | {dassl.optim}:
                if hasattr(module, "build_lr_scheduler"):
                    stack.enter_context(mock.patch.object(module, "build_lr_scheduler", EpochSchedule))
            super().build_model()
        modules = [m for model in vars(self).values() if isinstance(model, nn.Module) for m in model.modules()]
        if torch.cuda.device_count() > 1 and any(isinstance(m, nn.DataParallel) for m in modules):
            raise ConfigError(f"{self.wrapped} spreads batches over several GPUs: let it see one, CUDA_VISIBLE_DEVICES=0.")

    # ------------------------------------------------------------------------------------------------------ training

    @cached_property
    def _kdpl_teacher(self) -> Teacher | Ensemble:
        return self._kdpl_labels.teacher(tuple(self.lab2cname[label] for label in sorted(self.lab2cname)))

    @cached_property
    def _kdpl_log_scale(self) -> Tensor:
        """The logit_scale of the student, the logarithm of CLIP's; the teacher's, if it has none or several that differ."""
        for model in (getattr(self, "model", None), *self._models.values()):
            modules = model.modules() if isinstance(model, nn.Module) else ()
            scales = [s for m in modules if isinstance(s := getattr(m, "logit_scale", None), Tensor) and s.numel() == 1]
            values = [float(s.detach()) for s in scales]
            if values and max(values) - min(values) < 1e-4 and max(values) <= LARGEST_LOG_SCALE:
                return scales[0]
        if self.cfg.TRAINER.KDPL.TEACHER_LOGIT_SCALE == "student":
            print(f"KDPL in {self.wrapped}: its model has no logit_scale, so the teacher's logits have the teacher's own")
        return self._kdpl_teacher.members[0].clip.logit_scale.log()

    def forward_backward(self, batch: Any, *others: Any, **kwargs: Any) -> Any:
        """Take the trainer's own step, in which cross-entropy with labels of the batch is the divergence.

        Raises:
            UnsupportedStepError: the batch has no images, or cross-entropy has class weights.
        """
        options, given = self.cfg.TRAINER.KDPL, [batch, *others]
        with_images = [i for i, b in enumerate(given) if isinstance(b, Mapping) and "img" in b and "label" in b]
        if not with_images:
            raise UnsupportedStepError(
                f"{self.wrapped} trains on batches without 'img' and 'label': from sentences alone it learns without labels."
            )
        logits = [self._kdpl_logits(given[i]["img"]) for i in with_images]
        step, first = DistilledStep(torch.cat(logits), options.LOSS, options.TEMPERATURE), 0
        for i, rows in zip(with_images, logits, strict=True):
            given[i] = copy.copy(given[i])
            given[i]["label"] = step.labels(torch.as_tensor(given[i]["label"]), first)
            first += len(rows)
        # Labels that know their images cannot be traced: functions of torch.compile run as they are written.
        with self._kdpl_labels.at_work(), torch.compiler.set_stance("force_eager"):
            summary = super().forward_backward(*given, **kwargs)
        self._kdpl_distilled = self._kdpl_distilled or step.distilled
        if self._kdpl_said is None or not step.uses.keys() <= self._kdpl_said:
            self._kdpl_said = {*(self._kdpl_said or ()), *step.uses}
            self._kdpl_say(str(step))
        return summary

    @torch.no_grad()
    def _kdpl_logits(self, images: Any) -> Tensor:
        """Return logits (B, C) of a batch's images, or of one of their views, whose softmax is the teacher's distribution."""
        if isinstance(images, list | tuple):
            images = images[self.teacher_view]
        images = images.to(self._kdpl_labels.device, non_blocking=True)  # (B, 3, H, W)
        teacher, scale = self._kdpl_teacher, self._kdpl_log_scale.detach().float().exp().reshape(())
        logits = teacher.logits(teacher.image_features(images), scale.to(images.device))
        return mean_logits(logits, self.cfg.TRAINER.KDPL.TEMPERATURE)

    def _kdpl_say(self, used: str) -> None:
        """Print, and write beside the checkpoints with what a resumed run must share, what the labels were used for."""
        print(f"KDPL in {self.wrapped}: labels were used for {used}")
        if not self._kdpl_distilled:
            print("No cross-entropy with the batch's labels in this step: if none comes, nothing is saved")
        with atomic_write(Path(self.output_dir, FILE)) as file:
            file.write(json.dumps({**self._kdpl_facts(), "labels were used for": used}, indent=1).encode())

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with self._kdpl_labels.at_work():
            return super().train(*args, **kwargs)

    def before_epoch(self) -> None:
        set_random_seed(epoch_seed(self._kdpl_seed, self.epoch))  # a resumed run draws what an unbroken one does
        self._kdpl_chooses = self.epoch + 1 < self.max_epoch
        super().before_epoch()

    def save_model(self, *args: Any, **kwargs: Any) -> Any:
        self._kdpl_check_distilled()
        return super().save_model(*args, **kwargs)

    def after_train(self) -> None:
        self._kdpl_chooses = False
        if self.start_epoch < self.max_epoch:
            self._kdpl_check_distilled()
        super().after_train()

    def _kdpl_check_distilled(self) -> None:
        if not self._kdpl_distilled:
            raise UnsupportedStepError(
                f"{self.wrapped} never called F.cross_entropy or F.nll_loss with the batch's labels, so its loss is not KDPL's "
                "and nothing is saved: it learns without labels already, or by a loss of its own."
            )

    def test(self, *args: Any, **kwargs: Any) -> Any:
        """Test with the true labels of the split that is tested."""
        split = (args[0] if args else kwargs.get("split")) or self.cfg.TEST.SPLIT
        split = "val" if split == "val" and getattr(self, "val_loader", None) is not None else "test"
        if at_work and self._kdpl_chooses:
            print(f"KDPL in {self.wrapped}: tests on the {split} images before the last epoch, with their true labels")
        with self._kdpl_labels.at_work(split):
            return super().test(*args, **kwargs)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume as the trainer does, from a run with the same teacher, seed and settings.

        Raises:
            CheckpointError: they differ, or the run was none without labels.
        """
        if any(Path(directory, name, "checkpoint").is_file() for name in self.get_model_names()):
            then, now = {"trainer": f"'{FILE}' missing or damaged, as of a training with labels"}, self._kdpl_facts()
            with suppress(OSError, ValueError):
                then = json.loads(Path(directory, FILE).read_text(encoding="utf-8"))
            different = [f"{key} {then.get(key)!r}, now {now[key]!r}" for key in now if then.get(key) != now[key]]
            if different:
                raise CheckpointError(
                    f"Cannot resume from '{directory}': written with {'; '.join(different)}. Choose another --output-dir."
                )
        return super().resume_model_if_exist(directory)

    def _kdpl_facts(self) -> dict[str, Any]:
        """Return what a resumed run must have in common with the one that wrote a checkpoint."""
        teacher, cfg = self._kdpl_teacher, self.cfg
        parts = [x for m in teacher.members for x in (m.clip.weights_digest, m.prompts_digest, *m.templates)]
        settings = {f"TRAINER.KDPL.{k}": v for k, v in cfg.TRAINER.KDPL.items() if k not in RUNS_ONLY}
        settings |= {f"DATASET.{k}": cfg.DATASET.get(k, "") for k in OF_THE_DATA}
        return {
            "trainer": self.wrapped,
            "seed": self._kdpl_seed,
            "teacher": key_of(*teacher.names, *parts).hex(),
            **settings,
        }
