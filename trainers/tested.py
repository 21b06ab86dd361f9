"""A test: predictions of a split, and its result in `results.json`, never in place of one on other images."""

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from dassl.evaluation import Classification
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from kdpl.clip.model import NotFiniteError
from kdpl.common import distributed
from kdpl.common.rows import key_of
from kdpl.common.rows.digests import Content
from kdpl.common.tensor_files import update_digest
from kdpl.config.manifest import read_manifest
from kdpl.distill.views import contents_of, image_files, images_digest
from kdpl.trainers.records import data_folder, on_main
from kdpl.training.batches import loaded
from kdpl.training.pixels import ReadableImages
from kdpl.training.results import check_result, write_results

if TYPE_CHECKING:
    from kdpl.trainers.evaluation import EvaluatedTrainer


AT_ONCE = 10_000  # images whose predictions an evaluator takes in together


class Evaluation:
    """A test of a trainer on a split.

    Args:
        split: "test" or "val", which is the test images if there are no validation images.

    Raises:
        ValueError: there are no labelled images.
    """

    def __init__(self, trainer: "EvaluatedTrainer", split: str):
        self.trainer = trainer
        self.split = "test" if split == "val" and trainer.val_loader is None else split
        self.loader = trainer.val_loader if self.split == "val" else trainer.test_loader
        if self.loader is None:
            raise ValueError(
                f"DATASET.ROOT '{trainer.cfg.DATASET.ROOT}' has no labelled test images. For an accuracy, put some into "
                "subfolders of its folder 'test', named like the classes; for predictions load the prompts with kdpl.load."
            )
        # The engine's own evaluator looks at the largest logit alone, but reads it for each batch.
        self.counts_alone = type(trainer.evaluator) is Classification

    def run(self) -> float:
        """Print and log the results, add them to `results.json`, and return the accuracy in percent."""
        trainer, split, classes = self.trainer, self.split, len(self.trainer.class_names)
        trainer.set_model_mode("eval")
        trainer.evaluator.reset()
        refuse_other_images(trainer, split, self.loader)
        print(f"Evaluate on the *{split}* set")
        found = [self._take_in(*pair) for pair in self.predictions()]
        predicted, labels = torch.cat(found, dim=1).cpu()  # the evaluation's only wait for the device
        if (predicted < 0).any():
            raise NotFiniteError(
                f"The logits of the {split} images hold NaN or infinite values: there is no accuracy. Weights or prompts are "
                "damaged, or too large for the precision: load them again, or use PREC fp32."
            )
        if self.counts_alone:
            for some, theirs in zip(predicted.split(AT_ONCE), labels.split(AT_ONCE), strict=True):
                trainer.evaluator.process(F.one_hot(some, classes).float(), theirs)
        results = trainer.evaluator.evaluate()
        for name, value in results.items():
            trainer.write_scalar(f"{split}/{name}", value, trainer.epoch)
        counts = torch.zeros(2, classes, dtype=torch.long)  # right ones, all
        counts.index_add_(1, labels, torch.stack([predicted == labels, torch.ones_like(labels)]).long())
        trainer.last_result = record(trainer, split, self.loader, counts, results)
        return next(iter(results.values()))

    def _take_in(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Take in a batch; return its predictions, -1 where the logits are not finite, and labels `(2, B)`, on the device."""
        if not self.counts_alone:
            self.trainer.evaluator.process(logits, labels)
        return torch.stack([logits.argmax(1).where(logits.isfinite().all(1), -1), labels])

    def predictions(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the logits `(B, C)` and labels `(B,)` of all batches; ranks share the work and all yield all batches."""
        trainer, loader = self.trainer, self.loader
        batches, n, rank = list(loader.batch_sampler), distributed.world(), distributed.rank()
        bar = tqdm(range(0, len(batches), n), desc=self.split, leave=False, disable=None if distributed.is_main() else True)
        images = ReadableImages(loader.dataset, tested_images(trainer, loader)[1])
        with loaded(images, batches[rank::n], loader) as own:
            for start in bar:
                stop_if_asked(trainer)
                counts = [len(batch) for batch in batches[start : start + n]]
                counts += [0] * (n - len(counts))
                if counts[rank]:
                    images, labels = trainer.parse_batch_test(next(own))
                    logits = trainer.model_inference(images)
                else:
                    logits = torch.empty(0, len(trainer.class_names), device=trainer.device)
                    labels = torch.empty(0, dtype=torch.long, device=trainer.device)
                shares = (distributed.gather_rows(rows, counts).split(counts) for rows in (logits, labels))
                yield from (pair for pair in zip(*shares, strict=True) if len(pair[1]))


def stop_if_asked(trainer: "EvaluatedTrainer") -> None:
    """End a run that a signal asks to, if all is saved: after the last epoch; before, the next step saves."""
    if trainer.finished_epochs == trainer.max_epoch and distributed.any_rank(bool(trainer.stop.signal)):
        trainer.stop.leave()


def tested_images(trainer: "EvaluatedTrainer", loader: DataLoader) -> tuple[str, dict[str, Content]]:
    """Return the digest of a loader's images in their order, and their contents by path; all ranks get the main rank's.

    Raises:
        OSError: an image is missing or cannot be read.
    """
    items = loader.dataset.data_source
    known = trainer.__dict__.setdefault("_tested_images", {})
    if id(items) not in known:

        def read() -> tuple[str, dict[str, Content]]:
            files = image_files([item.impath for item in items], trainer.cfg.DATASET.ROOT or data_folder(trainer))
            return images_digest(items, files, True), contents_of(items, files)

        known[id(items)] = (*on_main(read), items)  # which keeps the number its own
    digest, contents, _ = known[id(items)]
    return digest, contents


def refuse_other_images(trainer: "EvaluatedTrainer", split: str, loader: DataLoader) -> None:
    """Refuse, before a test, to replace a result on other images of the same data set.

    Raises:
        OtherRunError: it names the result and both digests.
    """
    result = _tested(trainer, split, loader)
    on_main(lambda: check_result(trainer.cfg.OUTPUT_DIR, _run(trainer), result))


def record(
    trainer: "EvaluatedTrainer", split: str, loader: DataLoader, counts: Tensor, metrics: dict[str, float]
) -> dict[str, Any] | None:
    """Add the result of a test to `results.json` in the output folder, and return it; only on the main rank.

    Args:
        loader: of the images.
        counts: by class the images that were predicted right, and all `(2, C)`.
        metrics: accuracy, error_rate and macro_f1 in percent.
    """
    result = _tested(trainer, split, loader)
    if not distributed.is_main():
        return None
    result |= {
        "num_classes": len(trainer.class_names),
        "num_images": int(counts[1].sum()),
        "class_names": key_of(*trainer.class_names).hex(),
        "right_by_class": " ".join(f"{right}/{images}" for right, images in counts.T.tolist()),
        **{name: float(metrics[name]) for name in ("accuracy", "error_rate", "macro_f1")},
    }
    where = " ".join([result["dataset"], split, result["classes"], *result["target_domains"]])
    if trainer.manifest is not None:
        trainer.manifest = replace(trainer.manifest, tests={**trainer.manifest.tests, where: result["images"]})
    write_results(trainer.cfg.OUTPUT_DIR, {**_run(trainer), "prompts": prompts_digest(trainer)}, result)
    written = read_manifest(trainer.cfg.OUTPUT_DIR)
    if trainer.manifest is not None and written is not None and written.digest == trainer.manifest.digest:
        trainer.manifest.write(trainer.cfg.OUTPUT_DIR)
    return result


def prompts_digest(trainer: "EvaluatedTrainer") -> str:
    """Return a digest of the learned prompts; empty for a zero-shot CLIP, which has none."""
    if not hasattr(trainer, "student"):
        return ""
    learned = trainer.student.learned.state_dict()
    versions = [(name, value._version) for name, value in learned.items()]
    known, digest = trainer.__dict__.get("_prompts_digest", (None, ""))
    if known != versions:  # once for all tests of the same prompts: it waits for the device
        content = hashlib.sha256()
        update_digest(content, learned)
        digest = content.hexdigest()[:16]
        trainer._prompts_digest = versions, digest
    return digest


def _tested(trainer: "EvaluatedTrainer", split: str, loader: DataLoader) -> dict[str, Any]:
    """Return what a result is of."""
    cfg = trainer.cfg
    return {
        "dataset": cfg.DATASET.NAME,
        "split": split,
        "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
        "source_domains": list(cfg.DATASET.SOURCE_DOMAINS),
        "target_domains": list(cfg.DATASET.TARGET_DOMAINS),
        "images": tested_images(trainer, loader)[0],
    }


def _run(trainer: "EvaluatedTrainer") -> dict[str, Any]:
    cfg, teacher = trainer.cfg, trainer.teacher_name()
    return {
        "trainer": cfg.TRAINER.NAME,
        "backbone": cfg.MODEL.BACKBONE.NAME,
        "teacher": teacher,
        "class_agnostic": teacher is not None and bool(cfg.TRAINER.KDPL.CLASS_AGNOSTIC),
        "seed": cfg.SEED,
        "shots": cfg.DATASET.NUM_SHOTS,
        "learned_parameters": trainer.learned_parameters,
        "train_seconds": round(trainer.train_seconds, 2),
        "epoch": trainer.finished_epochs,
        "config": cfg.dump(),
        "manifest": trainer.manifest and trainer.manifest.to_dict(),
        **trainer.command,
    }
