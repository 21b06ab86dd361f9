"""The common adapter between Dassl's life cycle and the method: a student, an objective, checkpoints and results.

A trainer is a student class (what is learned) times an objective: `DistillTrainer` matches a teacher without labels,
`SupervisedTrainer` takes cross-entropy on labels. It runs on an installed Dassl and on the bundled engine alike, and uses
neither's schedulers nor its loading.
"""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from dassl.engine import TrainerX
from dassl.evaluation import build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from kdpl import checkpoint
from kdpl.clips import describe, load_clip
from kdpl.config import check_config
from kdpl.distill import distillation_loss, select_names
from kdpl.results import write_results
from kdpl.schedule import build_schedule
from kdpl.selection import SelectionReport
from kdpl.students import Student
from kdpl.teacher import Teacher
from kdpl.templates import DEFAULT, template_for


class EvaluatedTrainer(TrainerX):
    """Evaluation shared by everything that gives logits over the data set's class names."""

    epoch = 0  # the running one, from 0
    finished_epochs = 0  # of the prompts that are evaluated
    learned_parameters = 0
    train_seconds = 0.0
    command: Mapping[str, Any] = MappingProxyType({})  # what results.json says of the command line: config_name, model_dir

    @property
    def class_names(self) -> list[str]:
        """The data set's class names, in the order of their labels."""
        return [self.lab2cname[label] for label in sorted(self.lab2cname)]

    def use_dataset(self, cfg: CfgNode) -> None:
        """Evaluate on another data set from now on: its images and class names, the same model."""
        self.cfg = cfg
        self.build_data_loader()
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.use_class_names()

    def use_class_names(self) -> None:
        """Compute what depends on `class_names`."""
        raise NotImplementedError

    def load_for_training(self) -> None:
        """Load what training needs and evaluation does not, so that what is missing is told before the run starts."""

    def logits(self, images: Tensor) -> Tensor:
        """Return the logits (B, C) of images (B, 3, H, W) over `class_names`."""
        raise NotImplementedError

    @torch.no_grad()
    def model_inference(self, images: Tensor) -> Tensor:
        return self.logits(images)

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        """Evaluate on a split, print and log the results, add them to `results.json`, and return the accuracy in percent."""
        self.set_model_mode("eval")
        self.evaluator.reset()
        split = split or self.cfg.TEST.SPLIT
        if split == "val" and self.val_loader is None:
            split = "test"
        loader = self.val_loader if split == "val" else self.test_loader
        print(f"Evaluate on the *{split}* set")
        images_seen = 0
        for batch in tqdm(loader, desc=split, leave=False, disable=None):
            images, labels = self.parse_batch_test(batch)
            self.evaluator.process(self.model_inference(images), labels)
            images_seen += len(labels)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        self.record(split, images_seen, results)
        return next(iter(results.values()))

    def record(self, split: str, images: int, metrics: dict[str, float]) -> None:
        """Add the result of a test to `results.json` in the output folder."""
        cfg = self.cfg
        run = {
            "trainer": cfg.TRAINER.NAME,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "teacher": self.teacher_name(),
            "class_agnostic": self.teacher_name() is not None and bool(cfg.TRAINER.KDPL.CLASS_AGNOSTIC),
            "seed": cfg.SEED,
            "shots": cfg.DATASET.NUM_SHOTS,
            "learned_parameters": self.learned_parameters,
            "train_seconds": round(self.train_seconds, 2),
            "epoch": self.finished_epochs,
            "config": cfg.dump(),
            **self.command,
        }
        result = {
            "dataset": cfg.DATASET.NAME,
            "split": split,
            "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
            "source_domains": list(cfg.DATASET.SOURCE_DOMAINS),
            "target_domains": list(cfg.DATASET.TARGET_DOMAINS),
            "num_classes": len(self.class_names),
            "num_images": images,
            **{name: float(metrics[name]) for name in ("accuracy", "error_rate", "macro_f1")},
        }
        write_results(cfg.OUTPUT_DIR, run, result)

    def teacher_name(self) -> str | None:
        """The teacher that the numbers depend on, or None."""
        return None

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.to_device(batch["img"]), self.to_device(batch["label"])

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def precision(self, key: str, value: str) -> tuple[str, torch.dtype | None]:
        """Return the precision of the frozen weights and the type of autocast for a PREC; on a CPU fp16 becomes fp32."""
        if value in ("fp16", "amp") and self.device.type == "cpu":
            print(f"{key} {value} is for GPUs: on this CPU it is fp32")
            value = "fp32"
        autocast = {"amp": torch.float16, "bf16": torch.bfloat16}.get(value)
        return ("fp16" if value == "fp16" else "fp32"), autocast

    def autocast(self, dtype: torch.dtype | None) -> AbstractContextManager:
        return nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)


class PromptTrainer(EvaluatedTrainer):
    """Training of a student's prompts. Subclasses give `student_class` and `compute_loss`."""

    student_class: type[Student]

    @property
    def options(self) -> CfgNode:
        """The configuration node of the student."""
        return self.cfg.TRAINER[self.student_class.node]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        options = cfg.TRAINER[self.student_class.node]
        check_config(cfg, self.student_class.node)
        architecture = describe(cfg.MODEL.BACKBONE.NAME)
        if tuple(cfg.INPUT.SIZE) != (architecture.resolution,) * 2:
            raise ValueError(
                f"INPUT.SIZE {tuple(cfg.INPUT.SIZE)} is not what MODEL.BACKBONE.NAME '{cfg.MODEL.BACKBONE.NAME}' takes: "
                f"expected ({architecture.resolution}, {architecture.resolution})."
            )
        self.student_class.check(options, architecture, cfg.MODEL.BACKBONE.NAME)

    def build_model(self) -> None:
        cfg = self.cfg
        key = f"TRAINER.{self.student_class.node}.PREC"
        weights, self.autocast_dtype = self.precision(key, self.options.PREC)
        print(f"Loading student CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        self.clip = load_clip(cfg.MODEL.BACKBONE.NAME, weights, self.device)
        self.student = self.student_class.build(self.clip, self.options, self.class_names)
        learned = self.student.learned.float().to(self.device)
        self.learned_parameters = sum(p.numel() for p in learned.parameters())
        print(f"Learned parameters: {self.learned_parameters:,}")
        if cfg.MODEL.INIT_WEIGHTS:
            state = checkpoint.load_checkpoint(cfg.MODEL.INIT_WEIGHTS)
            checkpoint.load_learned(learned, state["state_dict"], cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learned, cfg.OPTIM)
        self.sched = build_schedule(self.optim, cfg.OPTIM)
        self.register_model(self.student.model_name, learned, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler(enabled=self.autocast_dtype == torch.float16)
        self.evaluation_text: Tensor | None = None
        self.use_class_names()

    def use_class_names(self) -> None:
        self.prepared = self.student.prepare(self.class_names)

    # ------------------------------------------------------------------------------------------------------ training

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the terms to report."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take one step on a batch and return its terms; the last batch of an epoch steps the schedule."""
        with self.autocast(self.autocast_dtype):
            loss, terms = self.compute_loss(batch)
        self.model_backward_and_update(loss)
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        values = torch.stack([term.detach().float() for term in terms.values()]).tolist()  # one transfer for all
        return dict(zip(terms, values, strict=True))

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        """Step the optimizer along the gradient of the loss, which must be finite."""
        self.detect_anomaly(loss)
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optim)
        self.scaler.update()

    def run_epoch(self) -> None:
        start = time.perf_counter()
        super().run_epoch()
        self.train_seconds += time.perf_counter() - start

    def after_epoch(self) -> None:
        self.finished_epochs = self.epoch + 1
        self.student.end_epoch(self.epoch, self.max_epoch)
        super().after_epoch()

    def train(self) -> None:
        if self.train_loader_x is None or len(self.train_loader_x) == 0:
            raise ValueError(f"DATASET.NAME '{self.cfg.DATASET.NAME}' has no training images: it can only be evaluated.")
        super().train()

    # ---------------------------------------------------------------------------------------------------- evaluation

    def logits(self, images: Tensor) -> Tensor:
        with self.autocast(self.autocast_dtype):
            return self.student(images, self.prepared, self.evaluation_text).logits

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        if not self.student.text_depends_on_images:  # once for the whole evaluation
            with self.autocast(self.autocast_dtype):
                self.evaluation_text = self.student.text_features(self.prepared)
        try:
            return super().test(split)
        finally:
            self.evaluation_text = None

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write the learned parameters and all that an exact resume needs, in the forks' layout."""
        state = {
            "state_dict": self.student.learned.state_dict(),
            "epoch": epoch + 1,
            "optimizer": self.optim.state_dict(),
            "scheduler": self.sched.state_dict(),
            "val_result": None if val_result is None else float(val_result),
            "kdpl": {
                "student": self.student.extra_state(),
                "scaler": self.scaler.state_dict(),
                "random": checkpoint.random_state(),
                "train_seconds": self.train_seconds,
                "trainer": self.extra_state(),
                "best_result": None if self.best_result == float("-inf") else float(self.best_result),
            },
        }
        folder = f"{directory}/{self.student.model_name}"
        path = checkpoint.save_checkpoint(state, folder, model_name or f"model.pth.tar-{epoch + 1}")
        if is_best:
            checkpoint.save_checkpoint(state, folder, checkpoint.BEST)
        print(f"Checkpoint saved to {path}")

    def resume_model_if_exist(self, directory: str) -> int:
        """Go on from the newest checkpoint in `directory`, if there is one; return the number of finished epochs."""
        path = checkpoint.newest_checkpoint(f"{directory}/{self.student.model_name}")
        if path is None:
            print("No checkpoint found, train from scratch")
            return 0
        state = self._load(path)
        if "kdpl" not in state or state.get("optimizer") is None:
            raise checkpoint.CheckpointError(
                f"'{path}' was not written by this trainer: it can be evaluated (--eval-only --model-dir) or start a new "
                "training (MODEL.INIT_WEIGHTS), not be resumed. Choose another --output-dir."
            )
        self.optim.load_state_dict(state["optimizer"])
        self.sched.load_state_dict(state["scheduler"])
        ours = state["kdpl"]
        self.student.load_extra_state(ours["student"])
        self.load_extra_state(ours["trainer"])
        self.scaler.load_state_dict(ours["scaler"])
        checkpoint.set_random_state(ours["random"])
        self.train_seconds = ours["train_seconds"]
        if ours["best_result"] is not None:
            self.best_result = ours["best_result"]
        print(f"Resume from {path} (epoch={state['epoch']})")
        return state["epoch"]

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts, ours or published ones, for evaluation; `epoch` None: the best, else the newest."""
        if not directory:
            print("No prompts are loaded, because no folder is given (--model-dir): the initial ones are evaluated")
            return
        path = checkpoint.checkpoint_path(directory, self.student.model_name, epoch)
        state = self._load(path)
        self.train_seconds = state.get("kdpl", {}).get("train_seconds", 0.0)
        print(f'Loading weights to {self.student.model_name} from "{path}" (epoch = {self.finished_epochs})')

    def extra_state(self) -> dict[str, Any]:
        """Return what an exact resume needs beyond prompts, optimizer, schedule and random generators."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned."""

    def _load(self, path: Any) -> dict[str, Any]:
        state = checkpoint.load_checkpoint(path)
        checkpoint.load_learned(self.student.learned, state["state_dict"], path)
        self.finished_epochs = state["epoch"]
        return state


class SupervisedTrainer(PromptTrainer):
    """Cross-entropy on labels, for the baselines. `loss` is the whole loss, the variant's own terms included."""

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = self.parse_batch_train(batch)
        output = self.student(images, self.prepared)
        own = self.student.regularisers(output, images, self.class_names)
        loss = F.cross_entropy(output.logits.float(), labels) + sum(own.values())
        return loss, {"loss": loss, "acc": compute_accuracy(output.logits, labels)[0].squeeze(), **own}

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.to_device(batch["img"]), self.to_device(batch["label"])


class DistillTrainer(PromptTrainer):
    """Unsupervised distillation from a frozen teacher (KDPL, arXiv:2407.03056); labels are never read.

    `loss` is the distillation loss, as in the published logs. A variant's own terms are reported beside it, with their sum
    with `loss`, which is what is minimised, as `loss_total`.
    """

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        check_config(cfg, "KDPL")
        describe(cfg.TRAINER.KDPL.TEACHER)
        template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
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

    selection: SelectionReport | None = None  # of a class-agnostic run

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
        weights, self.teacher_autocast = self.precision("TRAINER.KDPL.PREC", options.PREC)
        print(f"Loading teacher CLIP (backbone: {options.TEACHER})")
        with torch.autocast(self.device.type, enabled=False):  # whoever asks first
            clip = load_clip(options.TEACHER, weights, self.device)
            template, features = template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE), None
            if options.CLASS_AGNOSTIC:
                from kdpl.feature_cache import cached_text_features

                template = f"{options.CTX_INIT.replace('_', ' ')} {{}}." if options.CTX_INIT else DEFAULT
                features = cached_text_features(clip, self.training_names, template)
                self.selection = SelectionReport(self.training_names)
            mean, std = tuple(cfg.INPUT.PIXEL_MEAN), tuple(cfg.INPUT.PIXEL_STD)
            return Teacher(clip, self.training_names, template, mean, std, options.TEACHER_LOGIT_SCALE, features)

    def before_train(self) -> None:
        self.load_for_training()
        super().before_train()

    def load_for_training(self) -> None:
        _ = self.teacher

    def parse_batch_train(self, batch: dict[str, Any]) -> Tensor:
        return self.to_device(batch["img"])

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        options = self.cfg.TRAINER.KDPL
        images, teacher = self.parse_batch_train(batch), self.teacher
        with self.autocast(self.teacher_autocast):
            teacher_logits = teacher.logits(images, self.student.logit_scale)  # (B, C), or (B, V)
        names, prepared = self.training_names, self.prepared
        if options.CLASS_AGNOSTIC:
            chosen, probabilities = select_names(teacher_logits, options.K_MAX)  # (K,)
            self.selection.add(chosen, probabilities)
            teacher_logits = teacher_logits[:, chosen]
            names = [self.training_names[i] for i in chosen.tolist()]
            prepared = self.student.prepare(names)
        output = self.student(images, prepared)
        terms = distillation_loss(output.logits, teacher_logits, options.LOSS, options.TEMPERATURE)
        own = self.student.regularisers(output, images, names)
        total = terms["loss"] + sum(own.values())
        return total, {**terms, **own, **({"loss_total": total} if own else {})}

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.cfg.TRAINER.KDPL.SHOTS == "random" and self.cfg.DATASET.NUM_SHOTS > 0:
            from kdpl.datasets.base import ClassListDataset

            if not isinstance(self.dm.dataset, ClassListDataset):
                raise ValueError(
                    f"TRAINER.KDPL.SHOTS 'random' is not known to the data set {type(self.dm.dataset).__name__}, which is not "
                    "one of kdpl.datasets: set SHOTS to 'class', or import kdpl.datasets before the fork's own."
                )

    def extra_state(self) -> dict[str, Any]:
        return {"selection": self.selection.state()} if self.selection else {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        if self.selection and "selection" in state:
            self.selection.load_state(state["selection"])

    def after_epoch(self) -> None:
        super().after_epoch()
        if self.selection:
            self.selection.write(Path(self.cfg.OUTPUT_DIR, "selected_classes.csv"))
