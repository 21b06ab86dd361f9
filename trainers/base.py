"""The common adapter between Dassl's life cycle and the method: a student, an objective, checkpoints and results.

A trainer is a student class (what is learned) times an objective: `DistillTrainer` matches a teacher without labels,
`SupervisedTrainer` takes cross-entropy on labels. It runs on an installed Dassl and on the bundled engine alike, and uses
neither's schedulers nor its loading.
"""

import os
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TrainerX
from dassl.evaluation import EVALUATOR_REGISTRY, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer
from dassl.utils import AverageMeter, MetricMeter
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from yacs.config import CfgNode

from kdpl import checkpoint, distributed, lock
from kdpl.bundle import Bundle, Preprocessing, backbone_digest, write_bundle
from kdpl.checks import check_values
from kdpl.clips import autocast, cpu_likes_bf16, describe, load_clip, precision_here, resolve_precision
from kdpl.config import check_choice, check_config
from kdpl.history import History
from kdpl.images import write_bad_images
from kdpl.loading import EpochLoader
from kdpl.pixels import Normalize, ReadableImages, bytes_transform
from kdpl.prompts import check_names
from kdpl.results import write_results
from kdpl.schedule import build_schedule, check_schedule
from kdpl.seeding import SEEDS
from kdpl.signals import Interrupted, StopRequest, leave_signals_to_the_parent
from kdpl.steps import DivergenceError, Steps
from kdpl.students import Student
from kdpl.suggest import gist
from kdpl.templates import template_for


class EvaluatedTrainer(TrainerX):
    """Evaluation shared by everything that gives logits over the data set's class names."""

    epoch = 0  # the running one, from 0
    finished_epochs = 0  # of the prompts that are evaluated
    learned_parameters = 0
    train_seconds = 0.0
    told: frozenset[str] = frozenset()  # which images cannot be read
    last_result: Mapping[str, Any] | None = None  # of the last test
    command: Mapping[str, Any] = MappingProxyType({})  # what results.json says of the command line: config_name, model_dir

    @property
    def class_names(self) -> list[str]:
        """The data set's class names, in the order of their labels."""
        return [self.lab2cname[label] for label in sorted(self.lab2cname)]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        check_values(cfg)
        check_choice("TEST.EVALUATOR", cfg.TEST.EVALUATOR, EVALUATOR_REGISTRY.registered_names())
        known = transform_names()
        for name in cfg.INPUT.TRANSFORMS:
            check_choice("INPUT.TRANSFORMS", name, known)

    def build_data_loader(self) -> None:
        name = self.cfg.DATASET.NAME
        dataset = DATASET_REGISTRY.get(name) if name in DATASET_REGISTRY.registered_names() else None
        if manager := getattr(dataset, "data_manager", None):  # of a data set that reads images its own way
            self.dm = dm = manager(self.cfg)
            self.train_loader_x, self.train_loader_u = dm.train_loader_x, dm.train_loader_u
            self.val_loader, self.test_loader = dm.val_loader, dm.test_loader
            self.num_classes, self.lab2cname, self.num_source_domains = dm.num_classes, dm.lab2cname, dm.num_source_domains
        else:
            super().build_data_loader()
        if self.test_loader is None:
            self.do_without_test()
        mean, std = tuple(self.cfg.INPUT.PIXEL_MEAN), tuple(self.cfg.INPUT.PIXEL_STD)
        self.normalize = Normalize(mean, std)
        for loader in (self.train_loader_x, self.val_loader, self.test_loader):
            if loader is not None and (transform := bytes_transform(loader.dataset.transform, mean, std)):
                loader.dataset.transform = transform
        check_names(self.class_names)

    def do_without_test(self) -> None:
        """Have a run without labelled images end with the training."""
        if self.cfg.TEST.FINAL_MODEL == "best_val":
            raise ValueError(
                f"TEST.FINAL_MODEL 'best_val' needs labelled images, and DATASET.NAME '{self.cfg.DATASET.NAME}' has none to "
                "test: set it to 'last_step'."
            )
        print("There are no labelled images to test: no accuracy will be measured")
        self.cfg = self.cfg.clone()
        self.cfg.defrost()
        self.cfg.TEST.NO_TEST = True
        self.cfg.freeze()

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
        if loader is None:
            raise ValueError(
                f"DATASET.ROOT '{self.cfg.DATASET.ROOT}' has no labelled images to test. For an accuracy, put some into "
                "subfolders of its folder 'test', named like the classes; for predictions load the prompts with kdpl.load."
            )
        print(f"Evaluate on the *{split}* set")
        images_seen = 0
        for logits, labels in self.predictions(loader, split):
            self.evaluator.process(logits, labels)
            images_seen += len(labels)
        results = self.evaluator.evaluate()
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        self.record(split, images_seen, results)
        return next(iter(results.values()))

    def predictions(self, loader: DataLoader, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """Give the logits (B, C) and labels (B,) of a loader's batches; several ranks take turns and all get all."""
        batches, n, rank = list(loader.batch_sampler), distributed.world(), distributed.rank()
        workers = min(loader.num_workers, len(batches[rank::n]))
        own = DataLoader(
            ReadableImages(loader.dataset), batch_sampler=batches[rank::n], num_workers=workers, collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory, worker_init_fn=leave_signals_to_the_parent,
        )  # fmt: skip
        own = iter(own if batches[rank::n] else ())
        for start in tqdm(range(0, len(batches), n), desc=split, leave=False, disable=None if distributed.is_main() else True):
            self.stop_if_asked()
            counts = [len(batch) for batch in batches[start : start + n]]
            counts += [0] * (n - len(counts))
            if counts[rank]:
                images, labels = self.parse_batch_test(next(own))
                logits = self.model_inference(images)
            else:
                logits = torch.empty(0, len(self.class_names), device=self.device)
                labels = torch.empty(0, dtype=torch.long, device=self.device)
            shares = (distributed.gather_rows(rows, counts).split(counts) for rows in (logits, labels))
            yield from (pair for pair in zip(*shares, strict=True) if len(pair[1]))

    def stop_if_asked(self) -> None:
        """Raise `Interrupted` where a signal has come and nothing is left to be saved."""

    def write_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
        """Write a value to the TensorBoard log if it is open; a log that cannot be written ends, not the run."""
        with self._outliving_the_curves():
            super().write_scalar(tag, scalar_value, global_step)

    def close_writer(self) -> None:
        """Close the TensorBoard log if it is open."""
        with self._outliving_the_curves():
            super().close_writer()

    @contextmanager
    def _outliving_the_curves(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._writer = None
            print(f"The TensorBoard curves end here, because they cannot be written any more: {error}")

    def record(self, split: str, images: int, metrics: dict[str, float]) -> None:
        """Add the result of a test to `results.json` in the output folder."""
        if not distributed.is_main():
            return
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
        self.last_result = result

    def teacher_name(self) -> str | None:
        """The teacher that the numbers depend on, or None."""
        return None

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), self.to_device(batch["label"])

    def images(self, batch: dict[str, Any]) -> Tensor:
        """Return the batch's images (B, 3, H, W) on the device, normalised; where they can, they travel as bytes."""
        if new := sorted({*batch.get("unreadable", ())} - self.told - {""}):
            self.told = self.told.union(new)
            write_bad_images(self.cfg.OUTPUT_DIR, new, more=True)
            print("\n".join(["Images that cannot be read, with others in their place:", *new]))
        return self.normalize(self.to_device(batch["img"]))

    def to_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=True)

    def precision(self, key: str, value: str, frozen: bool = False) -> tuple[str, torch.dtype | None]:
        """Return the precision of the frozen weights and the type of autocast for a PREC."""
        here = precision_here(value, self.device.type, frozen)
        if here != value:
            print(f"{key} {value} is for GPUs: on this CPU it is {here}{' in the frozen image tower' if frozen else ''}")
        return resolve_precision(value, self.device.type, frozen)

    def autocast(self, dtype: torch.dtype | None) -> torch.autocast:
        """Return the context of one precision, whatever the one around it."""
        return autocast(self.device, dtype)


def transform_names() -> list[str]:
    """Return what INPUT.TRANSFORMS may hold in the engine that is in use."""
    from dassl.data import transforms

    return list(transforms.AVAILABLE if hasattr(transforms, "AVAILABLE") else transforms.transforms.AVAI_CHOICES)


class Shard(NamedTuple):
    """A rank's share of the class names."""

    prepared: Any  # the student's constants of them
    counts: list[int]  # how many names each rank has


LEAST_LOSS_SCALE = 2**-8  # it begins at 2**16 and is halved by every step whose gradients are not finite
RESUME = "resume.pth.tar"  # the state inside an epoch, beside the checkpoints of whole epochs


class PromptTrainer(EvaluatedTrainer):
    """Training of a student's prompts. Subclasses give `student_class` and `compute_loss`."""

    student_class: type[Student]

    def __init__(self, cfg: CfgNode):
        self.seed = cfg.SEED if cfg.SEED >= 0 else random.SystemRandom().randrange(SEEDS)
        self.first_batch = 0  # at which the running epoch begins: a resumed one goes on in its middle
        self.steps, self.history, self.stop = Steps(), History(), StopRequest()
        self.last_saved = time.monotonic()
        if cfg.TRAIN.DETERMINISTIC:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
            torch.backends.cudnn.benchmark = False
        distributed.start(cfg.USE_CUDA)
        self.seed = distributed.from_main(self.seed)
        super().__init__(cfg)

    @property
    def options(self) -> CfgNode:
        """The configuration node of the student."""
        return self.cfg.TRAINER[self.student_class.node]

    def check_cfg(self, cfg: CfgNode) -> None:
        """Refuse a configuration before data or models are touched."""
        options = cfg.TRAINER[self.student_class.node]
        super().check_cfg(cfg)
        check_config(cfg, self.student_class.node)
        template_for(cfg.DATASET.NAME, cfg.DATASET.TEMPLATE)
        check_schedule(cfg.OPTIM)
        architecture = describe(cfg.MODEL.BACKBONE.NAME)
        if tuple(cfg.INPUT.SIZE) != (architecture.resolution,) * 2:
            raise ValueError(
                f"INPUT.SIZE {tuple(cfg.INPUT.SIZE)} is not what MODEL.BACKBONE.NAME '{cfg.MODEL.BACKBONE.NAME}' takes: "
                f"expected ({architecture.resolution}, {architecture.resolution})."
            )
        self.student_class.check(options, architecture, cfg.MODEL.BACKBONE.NAME)
        if cfg.TRAINER.KDPL.SHARD_CLASSES and (self.student_class.text_depends_on_images or options.get("CSC", False)):
            reason = "learns a context for each class" if options.get("CSC", False) else "encodes the names anew for each image"
            raise ValueError(
                f"TRAINER.KDPL.SHARD_CLASSES True: {self.student_class.__name__} {reason}, which is shared among the processes "
                "by image alone. Set it to False."
            )

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.train_loader_x is not None:
            self.train_loader_x = EpochLoader(self.train_loader_x, self.seed)
            smallest = min(self.train_loader_x.loader.batch_size, len(self.train_loader_x.dataset))
            if smallest < distributed.world():
                raise ValueError(
                    f"A batch of {smallest} images cannot be shared by {distributed.world()} processes: raise "
                    "DATALOADER.TRAIN_X.BATCH_SIZE, the images in a batch of all processes together, or start fewer."
                )

    def build_model(self) -> None:
        cfg = self.cfg
        key = f"TRAINER.{self.student_class.node}.PREC"
        weights, self.autocast_dtype = self.precision(key, self.options.PREC)
        self.frozen_autocast_dtype = self.autocast_dtype
        if self.device.type == "cpu" and cpu_likes_bf16() and self.student_class.reads_frozen_image_features:
            _, self.frozen_autocast_dtype = self.precision(key, self.options.PREC, frozen=True)
        print(f"Loading student CLIP (backbone: {cfg.MODEL.BACKBONE.NAME})")
        self.clip = load_clip(cfg.MODEL.BACKBONE.NAME, weights, self.device)
        self.clip.text.max_rows = cfg.TRAINER.KDPL.MAX_TEXT_ROWS
        if cfg.TRAINER.KDPL.COMPILE:
            self.clip.compile()
        self.student = self.student_class.build(self.clip, self.options, self.class_names)
        learned = self.student.learned.float().to(self.device)
        distributed.same_as_main(learned.parameters())
        self.learned_parameters = sum(p.numel() for p in learned.parameters())
        print(f"Learned parameters: {self.learned_parameters:,}")
        if cfg.MODEL.INIT_WEIGHTS:
            state = checkpoint.load_checkpoint(cfg.MODEL.INIT_WEIGHTS)
            checkpoint.load_learned(learned, state["state_dict"], cfg.MODEL.INIT_WEIGHTS)
        self.optim = build_optimizer(learned, cfg.OPTIM)
        self.sched = build_schedule(self.optim, cfg.OPTIM)
        self.register_model(self.student.model_name, learned, self.optim, self.sched)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype == torch.float16)
        self.evaluation_text: Tensor | None = None
        self.use_class_names()

    def use_class_names(self) -> None:
        # a class-agnostic training may know no names at all
        self.prepared = self.prepare_names(self.class_names) if self.class_names else None

    def prepare_names(self, names: Sequence[str]) -> Any:
        """Return the constants of class names; with TRAINER.KDPL.SHARD_CLASSES of this rank's share of them."""
        if distributed.world() == 1 or not self.cfg.TRAINER.KDPL.SHARD_CLASSES:
            return self.student.prepare(names)
        if len(names) < distributed.world():
            raise ValueError(
                f"TRAINER.KDPL.SHARD_CLASSES True cannot share {len(names)} class names among {distributed.world()} processes: "
                "set it to False."
            )
        counts = [len(names[distributed.share(len(names), rank)]) for rank in range(distributed.world())]
        return Shard(self.student.prepare(names[distributed.share(len(names))]), counts)

    def text_features(self, prepared: Any) -> Tensor | None:
        """Return the text features (C, d) where they must be asked of all ranks, else None: the student has its own."""
        if not isinstance(prepared, Shard):
            return None
        return distributed.gather_with_gradient(self.student.text_features(prepared.prepared), prepared.counts)

    def frozen_features(self, images: Tensor) -> Tensor | None:
        """Return the frozen CLIP's features (B, d) of a batch, where the student reads them."""
        if not self.student.reads_frozen_image_features:
            return None
        with self.autocast(self.frozen_autocast_dtype):
            return self.student.frozen_image_features(images)

    # ------------------------------------------------------------------------------------------------------ training

    @property
    def training_names(self) -> list[str]:
        """The names that the training tells apart."""
        return self.class_names

    def load_for_training(self) -> None:
        if len(self.training_names) < 2:
            raise ValueError(
                f"There is nothing to learn about {len(self.training_names)} class names {self.training_names}: expected at "
                "least 2, such as those of DATASET.SUBSAMPLE_CLASSES all, or with TRAINER.KDPL.CLASS_AGNOSTIC a vocabulary's."
            )

    def before_train(self) -> None:
        self.load_for_training()
        super().before_train()

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of a batch and the terms to report."""
        raise NotImplementedError

    def forward_backward(self, batch: dict[str, Any]) -> dict[str, float]:
        """Take one step on a batch and return its terms."""
        terms = self.train_step(batch)
        values = torch.stack([term.float() for term in terms.values()]).tolist()  # one transfer for all
        return dict(zip(terms, values, strict=True))

    def train_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Take one step on a batch; the last batch of an epoch steps the schedule.

        Returns:
            The terms as scalars on the device, so that no step waits for it: `run_epoch` reads many at a time.
        """
        with self.autocast(self.autocast_dtype):
            loss, terms = self.compute_loss(batch)
        self.model_backward_and_update(loss * self.weight(batch))
        if self.batch_idx + 1 == self.num_batches:
            self.update_lr()
        return {name: term.detach() for name, term in terms.items()}

    def model_backward_and_update(self, loss: Tensor, names: Any = None) -> None:
        """Step the optimizer along the gradient of the loss, or of the sum of all ranks' losses."""
        self.optim.zero_grad()
        self.scaler.scale(loss).backward()
        distributed.sum_gradients(self.student.learned.parameters())
        self.scaler.step(self.optim)
        self.scaler.update()

    def weight(self, batch: dict[str, Any]) -> float:
        """Return the share of the whole batch that this rank has."""
        return batch["counts"][distributed.rank()] / batch["size"] if distributed.world() > 1 else 1.0

    def run_epoch(self) -> None:
        """Train for one epoch, or for the rest of one that was interrupted; print every TRAIN.PRINT_FREQ batches."""
        started = time.perf_counter()
        self.set_model_mode("train")
        loader = self.train_loader_x
        loader.epoch, loader.start = self.epoch, self.first_batch
        self.num_batches = len(loader)
        # A set with fewer batches than that prints each of them.
        print_freq = self.cfg.TRAIN.PRINT_FREQ if self.num_batches >= self.cfg.TRAIN.PRINT_FREQ else 1
        self.meters, self.batch_time, self.data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.batch_idx = self.first_batch - 1
        for name, (total, count, value) in (self.resumed_meters if self.first_batch else {}).items():
            meter = self.meters.meters[name]
            meter.sum, meter.count, meter.val, meter.avg = total, count, value, total / count
        end = time.perf_counter()
        for i, batch in enumerate(loader, self.first_batch):
            self.batch_idx = i
            self.data_time.update(time.perf_counter() - end)
            lr = self.get_current_lr()
            self.steps.add(self.batch_idx, lr, batch["impath"], self.train_step(batch), self.weight(batch))
            self.batch_time.update(time.perf_counter() - end)
            to_read = (self.batch_idx + 1) % print_freq == 0
            if to_read:
                self.read_steps()
                self.print_progress()
            if self.is_time_to_save(to_read):
                self.train_seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.save_inside_epoch()
            end = time.perf_counter()
        self.read_steps()
        self.first_batch = 0
        self.train_seconds += time.perf_counter() - started

    def read_steps(self) -> None:
        """Read the terms of the steps since the last time from the device, for the meters and the logs.

        Raises:
            DivergenceError: a term is not finite, it names the images of the batch; or gradients never are.
        """
        steps = self.steps.read()
        if steps and self.scaler.is_enabled() and (scale := self.scaler.get_scale()) < LEAST_LOSS_SCALE:
            raise DivergenceError(
                f"Gradients are NaN or infinite step after step, so that none is taken: amp's loss scale fell to {scale}. "
                "Set PREC fp32 or bf16, or lower OPTIM.LR."
            )
        for step in steps:
            self.meters.update(step.values)
            self.history.add(step)
            n = self.epoch * self.num_batches + step.batch
            for name, meter in self.meters.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, n)
            self.write_scalar("train/lr", step.lr, n)

    def print_progress(self) -> None:
        """Print a line about the running epoch in the form that the forks' parsers read."""
        batches_left = (self.max_epoch - self.epoch) * self.num_batches - self.batch_idx - 1
        print(
            f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{self.batch_idx + 1}/{self.num_batches}] "
            f"time {self.batch_time.val:.3f} ({self.batch_time.avg:.3f}) "
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
            f"{self.meters} lr {self.get_current_lr():.4e} eta {timedelta(seconds=int(self.batch_time.avg * batches_left))}"
        )

    def is_time_to_save(self, to_read: bool = True) -> bool:
        """Whether a signal or the clock wants the state saved; several ranks agree about it, at steps that are read alone."""
        minutes = self.cfg.TRAIN.CHECKPOINT_EVERY_MINUTES
        due = bool(self.stop.signal) or (minutes > 0 and time.monotonic() - self.last_saved >= 60 * minutes)
        return due if distributed.world() == 1 else to_read and distributed.any_rank(due)

    def stop_if_asked(self) -> None:
        # When all epochs are trained, all is saved; else the next step saves.
        if self.finished_epochs == self.max_epoch and distributed.any_rank(bool(self.stop.signal)):
            self.leave()

    def leave(self) -> None:
        """End the run, which has saved its state, on the signal that came."""
        self.close_writer()
        message = f"Stopped by {self.stop.signal or 'a signal'} after saving: the same command again goes on from here"
        print(message, flush=True)
        raise Interrupted(message)

    def after_epoch(self) -> None:
        self.finished_epochs = self.epoch + 1
        self.student.end_epoch(self.epoch, self.max_epoch)
        self.history.end_epoch(self.finished_epochs)
        super().after_epoch()
        if distributed.is_main():
            self.history.write(self.output_dir)
        if self.finished_epochs == self.max_epoch and distributed.is_main():
            # The checkpoint of the last epoch holds all that the state inside the epoch did.
            Path(self.output_dir, self.student.model_name, RESUME).unlink(missing_ok=True)
        distributed.barrier()  # whoever reads a checkpoint finds it whole

    def init_writer(self, log_dir: Any) -> None:
        if distributed.is_main():
            super().init_writer(log_dir)

    def train(self) -> None:
        if self.train_loader_x is None or len(self.train_loader_x) == 0:
            raise ValueError(f"DATASET.NAME '{self.cfg.DATASET.NAME}' has no training images: it can only be evaluated.")
        if distributed.is_main():
            lock.occupy(self.output_dir)
        self.stop.install()
        try:
            super().train()
        finally:
            self.stop.uninstall()
            self.close_writer()

    def after_train(self) -> None:
        self.last_result = None  # what was measured on the way was of other prompts
        try:
            super().after_train()
        finally:  # a test that fails, at an image say, does not cost the training
            if distributed.is_main():
                print(f"Prompts written to {write_bundle(self.output_dir, self.bundle())}")

    def template(self) -> str:
        """The teacher's sentence."""
        return template_for(self.cfg.DATASET.NAME, self.cfg.DATASET.TEMPLATE)

    def bundle(self) -> Bundle:
        """Return the prompts as they are, with what is needed to use them."""
        cfg = self.cfg
        pixels = cfg.INPUT
        preprocessing = Preprocessing(
            tuple(pixels.SIZE), pixels.INTERPOLATION, tuple(pixels.PIXEL_MEAN), tuple(pixels.PIXEL_STD)
        )
        return Bundle(
            parameters=self.student.learned.state_dict(),
            variant=self.student_class.__name__,
            trainer=cfg.TRAINER.NAME,
            backbone=cfg.MODEL.BACKBONE.NAME,
            backbone_sha256=backbone_digest(self.clip),
            options=dict(self.options),
            preprocessing=preprocessing,
            dataset=cfg.DATASET.NAME,
            template=self.template(),
            classnames=self.class_names,
            teacher=self.teacher_name(),
            class_agnostic=self.teacher_name() is not None and cfg.TRAINER.KDPL.CLASS_AGNOSTIC,
            epoch=self.finished_epochs,
            results=[] if self.last_result is None else [dict(self.last_result)],
            config=cfg.dump(),
        )

    # ---------------------------------------------------------------------------------------------------- evaluation

    def logits(self, images: Tensor) -> Tensor:
        frozen = self.frozen_features(images) if self.student.image_features_are_frozen else None
        with self.autocast(self.autocast_dtype):
            text = self.evaluation_text if self.evaluation_text is not None else self.text_features(self.prepared)
            return self.student(images, self.prepared, text, frozen).logits

    @torch.no_grad()
    def test(self, split: str | None = None) -> float:
        if self.class_names and not self.student.text_depends_on_images:  # once for the whole evaluation
            with self.autocast(self.autocast_dtype):
                text = self.text_features(self.prepared)
                self.evaluation_text = self.student.text_features(self.prepared) if text is None else text
        try:
            return super().test(split)
        finally:
            self.evaluation_text = None

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_model(
        self, epoch: int, directory: str, is_best: bool = False, val_result: float | None = None, model_name: str = ""
    ) -> None:
        """Write the learned parameters and all that an exact resume needs, in the forks' layout."""
        state = self._state(epoch + 1, 0, val_result)
        self.last_saved = time.monotonic()
        if not distributed.is_main():
            return
        folder = f"{directory}/{self.student.model_name}"
        path = checkpoint.save_checkpoint(state, folder, model_name or f"model.pth.tar-{epoch + 1}")
        if is_best:
            checkpoint.save_checkpoint(state, folder, checkpoint.BEST)
        print(f"Checkpoint saved to {path}")

    def save_inside_epoch(self) -> None:
        """Write the state after the batch that has just been trained on, and end the run if a signal asked for it."""
        self.read_steps()  # what diverged is not saved
        state = self._state(self.epoch, self.batch_idx + 1, None)
        folder = f"{self.output_dir}/{self.student.model_name}"
        if distributed.is_main():
            checkpoint.save_checkpoint(state, folder, RESUME, newest=False)
        self.last_saved = time.monotonic()
        distributed.barrier()
        if distributed.any_rank(bool(self.stop.signal)):
            self.leave()

    def _state(self, epochs: int, batches: int, val_result: float | None) -> dict[str, Any]:
        learned = self.student.learned.state_dict()
        broken = [name for name, value in learned.items() if not torch.isfinite(value).all()]
        if broken:
            raise DivergenceError(
                f"{', '.join(broken)} became NaN or infinite in epoch {self.epoch + 1}, and is not saved: lower OPTIM.LR, "
                "lengthen the warm-up, or set PREC fp32."
            )
        return {
            "state_dict": learned,
            "epoch": epochs,
            "optimizer": self.optim.state_dict(),
            "scheduler": self.sched.state_dict(),
            "val_result": None if val_result is None else float(val_result),
            "kdpl": {
                "batch": batches,  # of the epoch after these
                "num_batches": len(self.train_loader_x),
                "seed": self.seed,
                "meters": {n: [m.sum, m.count, m.val] for n, m in self.meters.meters.items()} if batches else {},
                "history": self.history.state(),
                "student": self.student.extra_state(),
                "scaler": self.scaler.state_dict(),
                "random": checkpoint.random_state(),
                "train_seconds": self.train_seconds,
                "trainer": self.extra_state(),
                "best_result": None if self.best_result == float("-inf") else float(self.best_result),
            },
        }

    def resume_model_if_exist(self, directory: str) -> int:
        """Go on from the newest state in `directory`, if there is one; return the number of finished epochs."""
        path, state = self._newest_state(Path(directory, self.student.model_name))
        if path is None:
            print("No checkpoint found, train from scratch")
            return 0
        ours = state["kdpl"]
        if "history" not in ours or state.get("optimizer") is None:
            raise checkpoint.CheckpointError(
                f"'{path}' was not written by this trainer, or by another version of it: it can be evaluated (--eval-only "
                "--model-dir) or start a new training (MODEL.INIT_WEIGHTS), not be resumed. Choose another --output-dir."
            )
        try:
            self._go_on_from(path, state, ours)
        except checkpoint.CheckpointError:
            raise
        except Exception as error:  # of many kinds, from inside PyTorch: a part of the state is missing or of another kind
            raise checkpoint.CheckpointError(
                f"'{path}' cannot be gone on from ({gist(error)}): it is damaged, or of other settings. Go on with the "
                "settings that the run was begun with, delete the file to go on from an earlier one, or choose another "
                "--output-dir."
            ) from error
        inside = f", batch={self.first_batch}" if self.first_batch else ""
        print(f"Resume from {path} (epoch={state['epoch']}{inside})")
        return state["epoch"]

    def _go_on_from(self, path: Path, state: dict[str, Any], ours: dict[str, Any]) -> None:
        self._check_same_run(path, ours)
        self._take(path, state)
        self.optim.load_state_dict(state["optimizer"])
        self.sched.load_state_dict(state["scheduler"])
        self.student.load_extra_state(ours["student"])
        self.load_extra_state(ours["trainer"])
        self.history.load_state(ours["history"])
        self.scaler.load_state_dict(ours["scaler"])
        checkpoint.set_random_state(ours["random"])
        self.train_seconds = ours["train_seconds"]
        self.first_batch, self.resumed_meters = ours["batch"], ours["meters"]
        if ours["best_result"] is not None:
            self.best_result = ours["best_result"]

    def _newest_state(self, folder: Path) -> tuple[Path | None, dict[str, Any]]:
        """Return the state that is furthest, of the newest whole epoch or inside one, and its path."""
        path = checkpoint.newest_checkpoint(folder)
        state = {} if path is None else checkpoint.load_checkpoint(path)
        inside = folder / RESUME
        if inside.is_file():
            try:
                other = checkpoint.load_checkpoint(inside)
            except checkpoint.CheckpointError as error:
                print(f"Warning: {error} The run goes on from the last whole epoch.")
            else:
                if other["epoch"] >= state.get("epoch", 0):
                    return inside, other
        return path, state

    def _check_same_run(self, path: Path, ours: dict[str, Any]) -> None:
        """Refuse to go on with other batches than those the run was begun with."""
        if self.cfg.SEED < 0:
            self.seed = self.train_loader_x.seed = ours["seed"]
        for what, then, now in (
            ("SEED (--seed)", ours["seed"], self.seed),
            ("batches in an epoch", ours["num_batches"], len(self.train_loader_x)),
        ):
            if then != now:
                raise checkpoint.CheckpointError(
                    f"'{path}' is of a run with {then} as {what}, this one has {now}: go on with the settings it was begun "
                    "with, or choose another --output-dir."
                )

    def load_model(self, directory: str, epoch: int | None = None) -> None:
        """Load learned prompts, ours or published ones, for evaluation; `epoch` None: the best, else the newest."""
        if not directory:
            print("No prompts are loaded, because no folder is given (--model-dir): the initial ones are evaluated")
            return
        path = checkpoint.checkpoint_path(directory, self.student.model_name, epoch)
        state = checkpoint.load_checkpoint(path)
        self._take(path, state)
        self.train_seconds = state["kdpl"].get("train_seconds", 0.0)
        print(f'Loading weights to {self.student.model_name} from "{path}" (epoch = {self.finished_epochs})')

    def extra_state(self) -> dict[str, Any]:
        """Return what an exact resume needs beyond prompts, optimizer, schedule and random generators."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what `extra_state` returned."""

    def _take(self, path: Path, state: dict[str, Any]) -> None:
        checkpoint.load_learned(self.student.learned, state["state_dict"], path)
        self.finished_epochs = state["epoch"]


class SupervisedTrainer(PromptTrainer):
    """Cross-entropy on labels, for the baselines. `loss` is the whole loss, the variant's own terms included."""

    def compute_loss(self, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        images, labels = self.parse_batch_train(batch)
        frozen = self.frozen_features(images)
        output = self.student(images, self.prepared, self.text_features(self.prepared), frozen)
        own = self.student.regularisers(output, frozen, self.class_names)
        loss = F.cross_entropy(output.logits.float(), labels) + sum(own.values())
        return loss, {"loss": loss, "acc": compute_accuracy(output.logits, labels)[0].squeeze(), **own}

    def parse_batch_train(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return self.images(batch), self.to_device(batch["label"])
