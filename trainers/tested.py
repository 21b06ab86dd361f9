"""What a test is of, and its result in `results.json`: never in place of one on other images."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.utils.data import DataLoader

from kdpl.common import distributed
from kdpl.common.rows import key_of
from kdpl.common.rows.digests import Content
from kdpl.config.manifest import read_manifest
from kdpl.distill.views import contents_of, image_files, images_digest
from kdpl.experiments.results import check_images, write_results
from kdpl.trainers.records import data_folder, on_main

if TYPE_CHECKING:
    from kdpl.trainers.evaluation import EvaluatedTrainer


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
    on_main(lambda: check_images(trainer.cfg.OUTPUT_DIR, _run(trainer), result))


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
    digest = getattr(trainer, "prompts_digest", str)  # a zero-shot CLIP has no prompts
    write_results(trainer.cfg.OUTPUT_DIR, {**_run(trainer), "prompts": digest()}, result)
    written = read_manifest(trainer.cfg.OUTPUT_DIR)
    if trainer.manifest is not None and written is not None and written.digest == trainer.manifest.digest:
        trainer.manifest.write(trainer.cfg.OUTPUT_DIR)
    return result


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
