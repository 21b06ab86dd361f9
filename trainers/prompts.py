"""The life cycle of learned prompts on a Dassl engine, installed or bundled.

A trainer combines a student class (what is learned) with an objective: `DistillTrainer` matches a teacher without labels,
`SupervisedTrainer` uses cross-entropy on labels. The engine's schedulers and its checkpoint loading are not used.
"""

import hashlib
import os
import random
import time
from functools import cached_property
from typing import Any

import torch
from dassl.optim import build_optimizer
from torch import Tensor
from yacs.config import CfgNode

from kdpl.clip.loading import describe, load_clip
from kdpl.common import distributed
from kdpl.common.files import name_below
from kdpl.common.signals import StopRequest
from kdpl.common.tensor_files import update_digest
from kdpl.config.checks import check_config, check_extended
from kdpl.config.defaults import student_options
from kdpl.distill.objective import CrossEntropy, Objective
from kdpl.distill.views import ImageFile, ViewFeatures, image_files, view_features
from kdpl.students import Student
from kdpl.students.sharding import encode_names, prepare_names
from kdpl.text.prompts import sentence_features
from kdpl.text.same import warn_of_same_names
from kdpl.text.templates import fill
from kdpl.trainers.checkpoints import Checkpoints
from kdpl.trainers.evaluation import EvaluatedTrainer
from kdpl.trainers.training import Training
from kdpl.training import checkpoint
from kdpl.training.batches import EpochLoader
from kdpl.training.optimizers import check_all_learn
from kdpl.training.progress import Progress
from kdpl.training.schedule import build_schedule, check_schedule
from kdpl.training.seeding import SEEDS

FIXED = {"center_crop", "normalize"}  # of INPUT.TRANSFORMS: with these alone an image is the same in every epoch
STEP = ("forward_backward", "compute_loss", "parse_batch_train", "images")  # what sees a batch in a training step with labels


class PromptTrainer(Training, Checkpoints, EvaluatedTrainer):
    """Training of a student's prompts. Subclasses give `student_class`, `objective` and `compute_loss`."""

    student_class: type[Student]
    distilled = False  # from a teacher, without labels
    allowed_changes: tuple[str, ...] = ()  # configuration keys that a resumed run may change
    _digested: tuple[Any, str] = (None, "")  # versions and digest of the prompts

    def __init__(self, cfg: CfgNode):
        check_extended(cfg)
        self.seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS)
        self.first_batch = 0  # of the current epoch: a resumed run may begin inside one
        self.progress, self.stop = Progress(), StopRequest()
        self.last_saved = time.monotonic()
        self.evaluation_text: Tensor | None = None
        if cfg.TRAIN.DETERMINISTIC:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        distributed.start(cfg.USE_CUDA)
        self.seed = distributed.from_main(self.seed)
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

    def load_for_training(self) -> None:
        super().load_for_training()
        if not self.cfg.TRAINER.KDPL.COMPILE or self.train_loader_x is None:
            return
        # The scaler may ask for a second backward pass, which a compiled step does not have.
        why = "amp may repeat a backward pass" if self.scaler.is_enabled() else self.objective.no_graph
        if why:
            print(f"TRAINER.KDPL.COMPILE: the image towers are compiled, the step is not: {why}")
        else:
            self.objective.compile()

    def use_class_names(self) -> None:
        # A class-agnostic training may have no class names.
        shard, names = self.cfg.TRAINER.KDPL.SHARD_CLASSES, self.class_names
        self.prepared = prepare_names(self.student, names, shard) if names else None
        if names:
            warn_of_same_names(names, sentence_features(self.clip, fill(self.template(), names)), self.clip.name)

    @cached_property
    def objective(self) -> Objective:
        """The loss of a batch; built at first use, because an evaluation does not need it."""
        raise NotImplementedError

    @cached_property
    def training_images(self) -> list[ImageFile]:
        """Names and contents of the training images."""
        root = self.cfg.DATASET.ROOT or getattr(self.dm.dataset, "dataset_dir", "")
        return image_files([item.impath for item in self.train_loader_x.dataset.data_source], root)

    # ---------------------------------------------------------------------------------------------------- evaluation

    def logits(self, images: Tensor) -> Tensor:
        frozen = self.student.frozen_image_features(images) if self.student.image_features_are_frozen else None
        with self.clip.autocast():
            return self.student(images, self.prepared, self.evaluation_text, frozen).logits

    def prompts_digest(self) -> str:
        """Return a digest of the learned prompts."""
        learned = self.student.learned.state_dict()
        versions = [(name, value._version) for name, value in learned.items()]
        if self._digested[0] != versions:  # once for all tests of the same prompts: it waits for the device
            digest = hashlib.sha256()
            update_digest(digest, learned)
            self._digested = versions, digest.hexdigest()[:16]
        return self._digested[1]

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        if self.class_names and not self.student.text_depends_on_images:  # once for the whole evaluation
            with self.clip.autocast():
                self.evaluation_text = encode_names(self.student, self.prepared)
        try:
            return super().test(split)
        finally:
            self.evaluation_text = None


class SupervisedTrainer(PromptTrainer):
    """Cross-entropy on labels, for the baselines. `loss` is the whole loss, including the learner's own terms."""

    @cached_property
    def objective(self) -> CrossEntropy:
        return CrossEntropy(self.student, self.class_names, self.cfg.TRAINER.KDPL.SHARD_CLASSES)

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.train_loader_x is None or not self.sees_the_same_features:
            return
        loader, root = self.train_loader_x.loader, self.cfg.DATASET.ROOT or getattr(self.dm.dataset, "dataset_dir", "")
        items = loader.dataset.data_source
        self.train_loader_x = EpochLoader(loader, self.seed, views=1, images=[name_below(i.impath, root) for i in items])
        self.training_labels = torch.tensor([item.label for item in items])

    @property
    def sees_the_same_features(self) -> bool:
        """Whether an image has the same features in every epoch: its transform is not random, and the image tower is frozen."""
        cfg = self.cfg
        fixed = {*cfg.INPUT.TRANSFORMS} <= FIXED
        if distributed.world() > 1 and cfg.DATASET.ON_BAD_IMAGE != "error":
            return False  # another rank does not know the label of an image that takes the place of an unreadable one
        ours = all(getattr(type(self), name) is getattr(SupervisedTrainer, name) for name in STEP)
        return fixed and ours and self.student_class.image_features_are_frozen

    @cached_property
    def view_features(self) -> ViewFeatures:
        """The frozen student's features of the training images, computed once."""
        pixels = [list(self.cfg.INPUT.PIXEL_MEAN), list(self.cfg.INPUT.PIXEL_STD)]
        folder, images = self.cfg.TRAINER.KDPL.CACHE_DIR, self.training_images
        return view_features(self.clip, self.student.frozen_image_features, self.train_loader_x, images, folder, pixels)

    def load_for_training(self) -> None:
        super().load_for_training()
        if self.train_loader_x is not None and self.train_loader_x.views:
            self.train_loader_x.wanted = self.view_features.missing

    def after_train(self) -> None:
        if self.train_loader_x.views:
            self.view_features.table.sync()
        super().after_train()

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), batch["label"].to(self.device, non_blocking=True)

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        if not self.train_loader_x.views:
            return self.objective(*self.parse_batch_train(batch))
        images = self.images(batch) if "img" in batch else None
        if images is not None:  # an unreadable image has another one's features, and its label
            self.training_labels[batch["index"][batch["rows"]]] = batch["label"]
        labels = self.training_labels[batch["index"]].to(self.device, non_blocking=True)
        return self.objective(None, labels, frozen_features=self.view_features(batch, images))
