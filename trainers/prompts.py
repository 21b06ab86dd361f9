"""The life cycle of learned prompts on a Dassl engine, installed or bundled.

A trainer combines a student class (what is learned) with an objective: `DistillTrainer` matches a teacher without labels,
`SupervisedTrainer` uses cross-entropy on labels. The engine's schedulers and its checkpoint loading are not used.
"""

import os
import random
from pathlib import Path
from typing import Any

import torch
from dassl.optim import build_optimizer
from torch import Tensor
from yacs.config import CfgNode

from kdpl.bundle import write_bundle
from kdpl.clip.loading import describe, load_clip
from kdpl.common import distributed, lock
from kdpl.common.command import escape_streams
from kdpl.common.signals import StopRequest
from kdpl.config.checks import check_config, check_extended
from kdpl.config.defaults import student_options
from kdpl.distill.objective import Objective
from kdpl.distill.views import contents_of
from kdpl.students import Student
from kdpl.students.base import encode_names, prepare_names
from kdpl.text.prompts import sentence_features
from kdpl.text.same import warn_of_same_names
from kdpl.text.templates import fill
from kdpl.trainers import records
from kdpl.trainers.checkpoints import Checkpoints, resume
from kdpl.trainers.evaluation import EvaluatedTrainer
from kdpl.trainers.records import INSIDE, bundle_of
from kdpl.trainers.registry import is_ours
from kdpl.trainers.training import Loop
from kdpl.training import checkpoint
from kdpl.training.batches import EpochLoader
from kdpl.training.optimizers import check_all_learn
from kdpl.training.progress import Progress
from kdpl.training.schedule import build_schedule, check_schedule
from kdpl.training.seeding import SEEDS

STEP = ("forward_backward", "compute_loss", "features", "parse_batch_train", "images")  # what sees a batch in a training step


class PromptTrainer(EvaluatedTrainer):
    """The life of a run that learns a student's prompts.

    Subclasses give `student_class`, `objective` and `compute_loss(batch)`, which returns the loss and the terms to report.
    `forward_backward(batch)` is the training step, as everywhere in Dassl: a subclass may override it, and calls
    `model_backward_and_update(loss)`, or its parts `model_zero_grad`, `model_backward` and `model_update`, which scale, sum
    over ranks and step.
    """

    student_class: type[Student]
    objective: Objective  # built at first use, because an evaluation does not need it
    distilled = False  # from a teacher, without labels
    allowed_changes: tuple[str, ...] = ()  # configuration keys that a resumed run may change

    def __init__(self, cfg: CfgNode):
        check_extended(cfg)
        escape_streams()  # an engine's logger may have replaced them, and a fork's train.py escapes nothing
        self.seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS)
        self.first_batch = 0  # of the current epoch: a resumed run may begin inside one
        self.progress, self.stop = Progress(), StopRequest()
        self.evaluation_text: Tensor | None = None
        if cfg.TRAIN.DETERMINISTIC:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        distributed.start(cfg.USE_CUDA)
        self.seed = distributed.from_main(self.seed)
        self.loop, self.checkpoints = Loop(self), Checkpoints(self)
        super().__init__(cfg)

    # ------------------------------------------------------------------------------------------------------ building

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        student = self.student_class
        options = student_options(cfg, student.node)
        super().check_cfg(cfg)
        check_config(cfg, student.node)
        check_schedule(cfg.OPTIM)
        student.check(options, describe(cfg.MODEL.BACKBONE.NAME), cfg.MODEL.BACKBONE.NAME)
        specific = student.is_class_specific(options)
        if cfg.TRAINER.KDPL.SHARD_CLASSES and (student.text_depends_on_images or specific):
            own = f"learns {student.learned_for_each} for each class"
            reason = own if specific else "encodes the names again for each image"
            raise ValueError(
                f"TRAINER.KDPL.SHARD_CLASSES True: {student.__name__} {reason}, so processes can only share the images. "
                "Set it to False."
            )

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.train_loader_x is not None:
            self.train_loader_x = EpochLoader(self.train_loader_x, self.seed)
            smallest = min(self.train_loader_x.loader.batch_size, len(self.train_loader_x.dataset))
            if smallest < distributed.world():
                raise ValueError(
                    f"A batch of {smallest} images cannot be split among {distributed.world()} processes: raise "
                    "DATALOADER.TRAIN_X.BATCH_SIZE, the batch size of all processes together, or start fewer."
                )

    def build_model(self) -> None:
        cfg, node = self.cfg, self.student_class.node
        key, options = f"TRAINER.{node}.PREC", student_options(cfg, node)
        precision = self.effective_precision(key, options.PREC)
        frozen = (
            self.effective_precision(key, options.PREC, frozen=True) if self.student_class.reads_frozen_image_features else ""
        )
        print(f"Loading student CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        self.clip = load_clip(cfg.MODEL.BACKBONE.NAME, precision, self.device, frozen)
        self.clip.bound_text(cfg.TRAINER.KDPL.MAX_TEXT_ROWS)
        if cfg.TRAINER.KDPL.COMPILE:
            self.clip.compile()
        self.student = self.student_class(self.clip, options, self.class_names, self.template())
        learned = self.student.learned.float().to(self.device)
        distributed.same_as_main(learned.parameters())
        self.learned_parameters = sum(p.numel() for p in learned.parameters())
        print(f"Learned parameters: {self.learned_parameters:,}")
        if cfg.MODEL.INIT_WEIGHTS:
            state = checkpoint.load_checkpoint(cfg.MODEL.INIT_WEIGHTS)
            checkpoint.load_learned(learned, state["state_dict"], cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learned, cfg.OPTIM)
        check_all_learn({self.student.model_name: learned}, [self.optim], cfg.OPTIM)
        self.sched = build_schedule(self.optim, cfg.OPTIM)
        self.register_model(self.student.model_name, learned, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.clip.autocast_dtype == torch.float16)
        self.use_class_names()

    def use_class_names(self) -> None:
        # A class-agnostic training may have no class names.
        shard, names = self.cfg.TRAINER.KDPL.SHARD_CLASSES, self.class_names
        self.prepared = prepare_names(self.student, names, shard) if names else None
        if names:
            warn_of_same_names(names, sentence_features(self.clip, fill(self.template(), names)), self.clip.name)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def logits(self, images: Tensor) -> Tensor:
        frozen = self.student.frozen_image_features(images) if self.student.image_features_are_frozen else None
        with self.clip.autocast():
            return self.student(images, self.prepared, self.evaluation_text, frozen).logits

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        if self.class_names and not self.student.text_depends_on_images:  # once for the whole evaluation
            with self.clip.autocast():
                self.evaluation_text = encode_names(self.student, self.prepared)
        try:
            return super().test(split)
        finally:
            self.evaluation_text = None

    # ------------------------------------------------------------------------------------------------------ training

    def load_for_training(self) -> None:
        _ = self.objective
        if self.train_loader_x is None:
            return
        if self.manifest is None:
            self.manifest = records.manifest_of(self)
        # After the main rank, whose digests are remembered.
        self.train_loader_x.contents = contents_of(self.train_loader_x.dataset.data_source, self.training_images)
        if not self.cfg.TRAINER.KDPL.COMPILE:
            return
        # The scaler may ask for a second backward pass, which a compiled step does not have.
        why = "amp may repeat a backward pass" if self.scaler.is_enabled() else self.objective.no_graph
        if why:
            print(f"TRAINER.KDPL.COMPILE: the image towers are compiled, the step is not: {why}")
        else:
            self.objective.compile()

    def train(self) -> None:
        if self.train_loader_x is None or len(self.train_loader_x) == 0:
            raise ValueError(f"DATASET.NAME '{self.cfg.DATASET.NAME}' has no training images: it can only be evaluated.")
        self.load_for_training()
        if distributed.is_main():
            lock.occupy(self.output_dir)
            records.check_folder(self, Path(self.cfg.RESUME or self.output_dir))
        self.stop.install()
        try:
            super().train()
        finally:
            self.stop.uninstall()
            self.close_writer()

    def run_epoch(self) -> None:
        self.loop.run_epoch()

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one step on a batch; the last batch of an epoch steps the schedule.

        Returns:
            The terms as scalars on the device, which are read for many steps at once so that no step waits for it.
        """
        loss, terms = self.compute_loss(batch)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {name: term.detach() for name, term in terms.items()}

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        self.loop.update(loss)

    def model_backward(self, loss: Tensor) -> None:
        self.loop.backward(loss)

    def model_update(self, names: Any = None) -> None:
        self.loop.step_optimizer()

    def after_epoch(self) -> None:
        self.finished_epochs = self.epoch + 1
        self.student.end_epoch(self.epoch, self.max_epoch)
        self.progress.end_epoch(self.finished_epochs)
        if distributed.is_main():  # before the checkpoint: a run that fails between them does the epoch again, and writes both
            self.progress.write(self.output_dir)
        super().after_epoch()
        if distributed.is_main() and self.finished_epochs == self.max_epoch:
            # The checkpoint of the last epoch replaces the state inside an epoch.
            Path(self.output_dir, self.student.model_name, INSIDE).unlink(missing_ok=True)
        distributed.barrier()  # no rank reads a checkpoint before it is complete

    def after_train(self) -> None:
        self.last_result = None  # earlier tests evaluated earlier prompts
        try:
            super().after_train()
        finally:  # a failing test, for example on a damaged image, must not lose the prompts
            if distributed.is_main():
                print(f"Prompts written to {write_bundle(self.output_dir, bundle_of(self))}")

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write the learned parameters and everything else that an exact resume needs."""
        self.checkpoints.save(epoch, directory, is_best, val_result, model_name)

    def resume_model_if_exist(self, directory: str) -> int:
        """Resume from the newest state in `directory`, if there is one; return the number of finished epochs."""
        epochs = resume(self, Path(directory, self.student.model_name))
        records.write_manifest(self)
        return epochs

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts, ours or published ones, for evaluation; `epoch` None: the best, else the newest."""
        self.checkpoints.load(directory, epoch)


def has_own_step(trainer: type[PromptTrainer]) -> bool:
    """Whether a trainer class from outside this package sees the batches of a training: it defines a part of the step."""
    return any(not is_ours(part) for name in STEP if (part := getattr(trainer, name, None)) is not None)
