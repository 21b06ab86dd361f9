"""Cross-entropy on labels as a Dassl trainer, for the baselines."""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from kdpl.common import distributed
from kdpl.common.files import name_below
from kdpl.distill.objective import CrossEntropy
from kdpl.distill.views import ViewFeatures, view_features
from kdpl.trainers.data import dataset_root
from kdpl.trainers.prompts import PromptTrainer, has_own_step
from kdpl.training.batches import EpochLoader

FIXED = {"center_crop", "normalize"}  # of INPUT.TRANSFORMS: with these alone an image is the same in every epoch


class SupervisedTrainer(PromptTrainer):
    """Cross-entropy on labels, for the baselines. `loss` is the whole loss, including the learner's own terms."""

    @cached_property
    def objective(self) -> CrossEntropy:
        return CrossEntropy(self.student, self.class_names, self.cfg.TRAINER.KDPL.SHARD_CLASSES)

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.train_loader_x is None or not self.sees_the_same_features:
            return
        loader, items = self.train_loader_x.loader, self.train_loader_x.dataset.data_source
        names = [name_below(item.impath, dataset_root(self)) for item in items]
        self.train_loader_x = EpochLoader(loader, self.seed, views=1, images=names)
        self.training_labels = torch.tensor([item.label for item in items])

    @property
    def sees_the_same_features(self) -> bool:
        """Whether an image has the same features in every epoch: its transform is not random, and the image tower is frozen."""
        cfg = self.cfg
        if distributed.world() > 1 and cfg.DATASET.ON_BAD_IMAGE != "error":
            return False  # another rank does not know the label of an image that takes the place of an unreadable one
        fixed = {*cfg.INPUT.TRANSFORMS} <= FIXED
        return fixed and not has_own_step(type(self)) and self.student_class.image_features_are_frozen

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
            self.view_features.table.save()
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
