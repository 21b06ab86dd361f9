"""The objective of KDPL as a Dassl trainer: a frozen teacher's distribution over names in place of labels."""

from functools import cached_property
from pathlib import Path
from typing import Any

import PIL
import torch
import torchvision
from torch import Tensor
from yacs.config import CfgNode

from kdpl import distributed
from kdpl.clips import describe, load_clip
from kdpl.config import check_config
from kdpl.distill import distillation_loss, select_names
from kdpl.feature_cache import weights_digest
from kdpl.loading import EpochLoader
from kdpl.selection import SelectionReport
from kdpl.teacher import Teacher
from kdpl.templates import DEFAULT
from kdpl.trainers.base import PromptTrainer
from kdpl.views import FeatureTable, ImageFile, RowStore, ViewFeatures, store_folder


class DistillTrainer(PromptTrainer):
    """Unsupervised distillation from a frozen teacher (KDPL, arXiv:2407.03056); labels are never read.

    `loss` is the distillation loss, as in the published logs. A variant's own terms are reported beside it, with their sum
    with `loss`, which is what is minimised, as `loss_total`.
    """

    selection: SelectionReport | None = None  # of a class-agnostic run

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_config(cfg, "KDPL")
        describe(cfg.TRAINER.KDPL.TEACHER)
        if cfg.TRAINER.KDPL.CLASS_AGNOSTIC:
            from kdpl.vocabulary import check_vocabulary

            check_vocabulary(cfg.TRAINER.KDPL.VOCABULARY)
            if cfg.TRAINER[self.student_class.node].get("CSC", False):
                raise ValueError(
                    "TRAINER.COOP.CSC True and TRAINER.KDPL.CLASS_AGNOSTIC True contradict each other: a context for each "
                    "class cannot be learned when the classes are unknown. Set one of them to False."
                )

    def teacher_name(self) -> str:
        return self.cfg.TRAINER.KDPL.TEACHER

    def template(self) -> str:
        options = self.cfg.TRAINER.KDPL
        if not options.CLASS_AGNOSTIC:
            return super().template()
        return f"{options.CTX_INIT.replace('_', ' ')} {{}}." if options.CTX_INIT else DEFAULT

    # ------------------------------------------------------------------------------------------------- what is loaded

    @cached_property
    def training_names(self) -> list[str]:
        """The names that the teacher gives a distribution over: the data set's, or a vocabulary's."""
        options = self.cfg.TRAINER.KDPL
        if not options.CLASS_AGNOSTIC:
            return self.class_names
        from kdpl.vocabulary import load_vocabulary

        names = load_vocabulary(options.VOCABULARY, exclude=self.class_names if options.EXCLUDE_CLASSNAMES else ())
        print(f"Class-agnostic: {len(names):,} names, {options.K_MAX:,} at most chosen for each batch")
        return names

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher over `training_names`, loaded when it is first needed: an evaluation does without."""
        cfg, options = self.cfg, self.cfg.TRAINER.KDPL
        weights, self.teacher_autocast_dtype = self.precision("TRAINER.KDPL.PREC", options.PREC, frozen=True)
        print(f"Loading teacher CLIP (backbone: {options.TEACHER})")
        with self.autocast(None):  # whoever asks first
            clip = load_clip(options.TEACHER, weights, self.device)
            template, features = self.template(), None
            if options.CLASS_AGNOSTIC:
                from kdpl.feature_cache import cached_text_features

                features = cached_text_features(clip, self.training_names, template)
                self.selection = SelectionReport(self.training_names)
            mean, std = tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD)
            teacher = Teacher(clip, self.training_names, template, mean, std, options.TEACHER_LOGIT_SCALE, features)
        if options.COMPILE:
            clip.compile()
        return teacher

    def build_data_loader(self) -> None:
        super().build_data_loader()
        options = self.cfg.TRAINER.KDPL
        if options.SHOTS == "random" and self.cfg.DATASET.NUM_SHOTS > 0:
            from kdpl.datasets.base import ClassListDataset

            if not isinstance(self.dm.dataset, ClassListDataset):
                raise ValueError(
                    f"TRAINER.KDPL.SHOTS 'random' is not known to the data set {type(self.dm.dataset).__name__}, which is not "
                    "one of kdpl.datasets: set SHOTS to 'class', or import kdpl.datasets before the fork's own."
                )
        if options.VIEWS and self.train_loader_x is not None:
            loader = self.train_loader_x.loader
            root = self.cfg.DATASET.ROOT or getattr(self.dm.dataset, "dataset_dir", "")
            self.image_files = [ImageFile.of(item.impath, root) for item in loader.dataset.data_source]
            names = [image.name for image in self.image_files]
            self.train_loader_x = EpochLoader(loader, self.seed, options.VIEWS, options.VIEW_SEED, names)

    @cached_property
    def view_features(self) -> list[ViewFeatures]:
        """With fixed views, the teacher's features of them, and the frozen student's where it reads them."""
        loader = self.train_loader_x
        towers = [(self.teacher.clip, self.teacher_features, self.teacher_autocast_dtype)]
        if self.student.reads_frozen_image_features:
            towers.append((self.clip, self.frozen_features, self.frozen_autocast_dtype))
        features = []
        for clip, compute, autocast in towers:
            halved = clip.dtype != torch.float32 or autocast is not None
            dtype = torch.float16 if halved else torch.float32  # so that fp32 is exact, and half precision half the size
            width, store = clip.embed_dim, None
            if folder := self.cfg.TRAINER.KDPL.CACHE_DIR:
                meaning = {
                    "weights": weights_digest(clip, "image"),
                    "precision": [str(clip.dtype), str(autocast), str(dtype)],
                    "device": self.device.type,
                    "transform": [
                        repr(loader.dataset.transform),
                        list(self.cfg.INPUT.PIXEL_MEAN),
                        list(self.cfg.INPUT.PIXEL_STD),
                    ],
                    "views drawn by": loader.seed_of_views,
                    "versions": [PIL.__version__, torchvision.__version__],
                }
                store = RowStore(store_folder(folder, meaning), width, "float16" if halved else "float32")
            table = FeatureTable(self.image_files, loader.views, width, dtype, store)
            if store is not None:
                print(f"Features of {int(table.known.sum()):,} of {table.known.numel():,} views found for {clip.name}")
            chunk = -(-loader.loader.batch_size // distributed.world())
            features.append(ViewFeatures(compute, table, chunk, self.device))
            features[-1].agree()
        return features

    def load_for_training(self) -> None:
        super().load_for_training()
        _ = self.teacher
        if self.train_loader_x is not None and self.train_loader_x.views:
            features = self.view_features
            if self.student.image_features_are_frozen:  # else the student needs all pixels
                self.train_loader_x.wanted = lambda index, view: sum(f.missing(index, view) for f in features).bool()

    # ------------------------------------------------------------------------------------------------------ training

    def parse_batch_train(self, batch: dict[str, Any]) -> Tensor:
        return self.images(batch)

    def teacher_features(self, images: Tensor) -> Tensor:
        teacher = self.teacher
        with self.autocast(self.teacher_autocast_dtype):
            return teacher.image_features(images)

    def features(self, batch: dict[str, Any]) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Return a batch's images (B, 3, H, W) where it has any, and the teacher's and the frozen student's features (B, d)."""
        images = self.parse_batch_train(batch) if "img" in batch else None
        if not self.train_loader_x.views:
            return images, self.teacher_features(images), self.frozen_features(images)
        teacher, *student = (view_features(batch, images) for view_features in self.view_features)
        return images, teacher, student[0] if student else None

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        options = self.cfg.TRAINER.KDPL
        images, teacher_features, frozen = self.features(batch)
        teacher_logits = self.teacher.logits(teacher_features, self.student.logit_scale)  # (B, C), or (B, V)
        names, prepared = self.training_names, self.prepared
        if options.CLASS_AGNOSTIC:
            chosen, probabilities = select_names(teacher_logits, options.K_MAX, self.weight(batch))  # (K,)
            self.selection.add(chosen, probabilities)
            teacher_logits = teacher_logits[:, chosen]
            names = [self.training_names[i] for i in chosen.tolist()]
            prepared = self.prepare_names(names)
        output = self.student(images, prepared, self.text_features(prepared), frozen)
        terms = distillation_loss(output.logits, teacher_logits, options.LOSS, options.TEMPERATURE)
        own = self.student.regularisers(output, frozen, names)
        total = terms["loss"] + sum(own.values())
        return total, {**terms, **own, **({"loss_total": total} if own else {})}

    def run_epoch(self) -> None:
        super().run_epoch()
        if self.train_loader_x.views:
            for batch in self.train_loader_x.rest():  # so that after one pass over the views all are known
                self.features(batch)
            for features in self.view_features:
                features.table.sync()

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.selection and distributed.is_main():
            self.selection.write(Path(self.cfg.OUTPUT_DIR, "selected_classes.csv"))

    def extra_state(self) -> dict[str, Any]:
        return {"selection": self.selection.state()} if self.selection else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self.selection and "selection" in state:
            self.selection.load_state(state["selection"])
