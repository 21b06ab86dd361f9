"""What a run is made of, its state after or inside an epoch, and the exact resume from it: manifest, checkpoint, bundle."""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from kdpl.bundle import Bundle
from kdpl.common import distributed
from kdpl.common.environment import git_state, versions
from kdpl.common.files import file_digest, key_of
from kdpl.config.manifest import (
    Manifest,
    as_json,
    compare,
    config_of,
    learner_file,
    section,
)
from kdpl.distill.given import GivenTeacher
from kdpl.distill.teacher import Ensemble, Teacher
from kdpl.distill.views import ImageFile, images_digest
from kdpl.trainers.evaluation import EvaluatedTrainer
from kdpl.training import checkpoint
from kdpl.training.progress import DivergenceError

if TYPE_CHECKING:
    from kdpl.trainers.prompts import PromptTrainer

INSIDE = "resume.pth.tar"  # the state inside an epoch, beside the checkpoints of whole epochs
PIXELS = ("INPUT.SIZE", "INPUT.INTERPOLATION", "INPUT.PIXEL_MEAN", "INPUT.PIXEL_STD")
WAYS_OUT = (
    "Start with the settings of that run, choose another --output-dir, or start over with --fresh, which moves what is there "
    "aside."
)


def run_state(trainer: "PromptTrainer", epochs: int, batches: int, val_result: float | None = None) -> dict[str, Any]:
    """Return the learned parameters and everything else that an exact resume needs, in the forks' layout.

    Args:
        epochs: number of finished epochs.
        batches: number of finished batches in the next epoch.
        val_result: the accuracy on the validation images.

    Raises:
        DivergenceError: a learned parameter is not finite.
    """
    trainer.student.write_features()
    learned, selection = trainer.student.learned.state_dict(), trainer.objective.selection
    broken = [name for name, value in learned.items() if not torch.isfinite(value).all()]
    if broken:
        raise DivergenceError(
            f"{', '.join(broken)} became NaN or infinite in epoch {trainer.epoch + 1}, and is not saved: lower OPTIM.LR, "
            "lengthen the warm-up, or set PREC fp32."
        )
    return {
        "state_dict": learned,
        "epoch": epochs,
        "optimizer": trainer.optim.state_dict(),
        "scheduler": trainer.sched.state_dict(),
        "val_result": None if val_result is None else float(val_result),
        "kdpl": {
            "batch": batches,
            "seed": trainer.seed,
            "history": trainer.progress.state_dict(),
            "student": trainer.student.extra_state_dict(),
            "scaler": trainer.scaler.state_dict(),
            "random": checkpoint.random_state(),
            "train_seconds": trainer.train_seconds,
            "selection": selection and selection.state_dict(),
            "manifest": trainer.manifest and trainer.manifest.to_dict(),
            "best_result": float(trainer.best_result),
        },
    }


def saved_states(folder: Path) -> list[Path]:
    """Return the files in a run's folder that say what to resume from."""
    return [path for name in (checkpoint.NEWEST, INSIDE) for path in sorted(folder.glob(f"*/{name}"))]


def resume(trainer: "PromptTrainer", directory: Path) -> int:
    """Resume from the newest state in a run's folder, after comparing the settings; return the number of finished epochs.

    Raises:
        OtherRunError: the state was written with other settings, or by another learner; the message lists what differs.
        CheckpointError: the state was not written by this version; the message names what to do.
    """
    folders = [path.parent for path in saved_states(directory)]  # more than one if learners differ, whose settings do too
    own = directory / trainer.student.model_name
    path, state = newest_state(own if own in folders or not folders else folders[0])
    if path is None:
        print("No checkpoint found, train from scratch")
        return 0
    saved = state["kdpl"]
    then = Manifest.from_dict(saved.get("manifest"))
    if then is None or "history" not in saved or state.get("optimizer") is None:
        raise checkpoint.CheckpointError(
            f"Cannot resume from '{path}': it was not written by this version of this trainer. Evaluate it (--eval-only "
            "--model-dir), start a new training from it (MODEL.INIT_WEIGHTS), or choose another --output-dir."
        )
    if trainer.cfg.SEED < 0:  # the run drew one
        trainer.seed = trainer.train_loader_x.seed = saved["seed"]
        if trainer.manifest is not None:
            trainer.manifest = replace(trainer.manifest, config={**trainer.manifest.config, "SEED": trainer.seed})
    if trainer.manifest is not None:
        compare(then, trainer.manifest, f"'{directory}'", WAYS_OUT)
    trainer.manifest = trainer.manifest or then
    _restore(trainer, path, state, saved)
    inside = f", batch={trainer.first_batch}" if trainer.first_batch else ""
    print(f"Resume from {path} (epoch={state['epoch']}{inside})")
    return state["epoch"]


def newest_state(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the path and the content of the newest state, after or inside an epoch."""
    path, inside = checkpoint.newest_checkpoint(folder), folder / INSIDE
    state = checkpoint.load_checkpoint(path) if path else {}
    try:
        other = checkpoint.load_checkpoint(inside) if inside.is_file() else None
    except checkpoint.CheckpointError as error:
        print(f"Warning: {error} The run resumes from the last whole epoch.")
        other = None
    return (inside, other) if other and other["epoch"] >= state.get("epoch", 0) else (path, state)


def _restore(trainer: "PromptTrainer", path: Path, state: dict[str, Any], saved: dict[str, Any]) -> None:
    checkpoint.load_learned(trainer.student.learned, state["state_dict"], path)
    trainer.finished_epochs = state["epoch"]
    trainer.optim.load_state_dict(state["optimizer"])
    trainer.sched.load_state_dict(state["scheduler"])
    trainer.student.load_extra_state_dict(saved["student"])
    if trainer.objective.selection:
        trainer.objective.selection.load_state_dict(saved["selection"])
    trainer.progress.load_state_dict(saved["history"])
    trainer.scaler.load_state_dict(saved["scaler"])
    checkpoint.set_random_state(saved["random"])
    trainer.train_seconds, trainer.first_batch = saved["train_seconds"], saved["batch"]
    trainer.best_result = saved["best_result"]


def manifest_of(trainer: "PromptTrainer") -> Manifest:
    """Return the manifest of a training that is about to start; all ranks get the main rank's facts."""
    cfg, node, distilled = trainer.cfg, trainer.student_class.node, trainer.distilled
    init, images = cfg.MODEL.INIT_WEIGHTS, trainer.train_loader_x.dataset.data_source

    def facts() -> dict[str, Any]:
        agnostic = distilled and cfg.TRAINER.KDPL.CLASS_AGNOSTIC
        found = {
            "class names": trainer.class_names,
            "template": trainer.template(),
            "training images": images_digest(images, trainer.training_images, labelled=not distilled),
            "student": trainer.clip.identity[:16],
            "teacher": None,
            "vocabulary": key_of(*trainer.training_names).hex() if agnostic else None,
            "initial weights": file_digest(init).hex() if init else None,
            **learner_file(trainer.student_class),
        }
        if pool := getattr(trainer.dm.dataset, "drawn_from", None):  # the images that the training images were drawn from
            sizes = [f"{os.path.getsize(item.impath)} bytes" for item in pool]
            files = map(ImageFile, trainer.keys([item.impath for item in pool]), sizes)
            found["drawn from"] = images_digest(pool, list(files), True)
        if distilled:
            found |= teacher_facts(trainer, trainer.objective.teacher, "teacher")
            found |= {"labels": trainer.labelled.digest} if trainer.labelled else {}
        return found

    config = {**config_of(cfg, node, distilled), "SEED": trainer.seed}
    return Manifest(config, distributed.from_main(facts() if distributed.is_main() else None), environment_of(trainer, node))


def environment_of(trainer: EvaluatedTrainer, node: str) -> dict[str, Any]:
    """Return where a run computes."""
    device = trainer.device
    return as_json(
        {
            **versions(),
            "commit": git_state(),
            "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
            "processes": distributed.world(),
            "threads": torch.get_num_threads(),
            **section(trainer.cfg, "rounds", node, trainer.teacher_name() is not None),
        }
    )


def zero_shot_manifest(trainer: EvaluatedTrainer, teacher: Teacher | Ensemble | None = None) -> Manifest:
    """Return the manifest of a CLIP, or a teacher, that is evaluated with hand-written sentences."""
    facts = teacher_facts(trainer, teacher, "clip") if teacher else {"clip": trainer.clip.identity[:16]}
    return Manifest(config_of(trainer.cfg, "", teacher is not None), facts, environment_of(trainer, ""))


def teacher_facts(trainer: EvaluatedTrainer, teacher: Teacher | Ensemble | GivenTeacher, key: str) -> dict[str, Any]:
    """Return a digest of the teacher, of several in their order, and of sentences and prompts that are not the default."""
    options, members = trainer.cfg.TRAINER.KDPL, teacher.members
    if isinstance(teacher, GivenTeacher):
        return {key: teacher.teacher.digest[:16]}
    found = {key: " + ".join(member.clip.identity[:16] for member in members)}
    if options.TEACHER_TEMPLATES:
        found["teacher's sentences"] = f"{len(members[0].templates)} ({key_of(*members[0].templates).hex()})"
    if options.TEACHER_PROMPTS:
        found["teacher's prompts"] = " + ".join(member.prompts_digest[:16] for member in members)
    return found


def check_evaluated(trainer: "PromptTrainer", path: Path, state: dict[str, Any]) -> Manifest | None:
    """Return the manifest of prompts that were loaded for an evaluation; None for those of another program.

    Raises:
        OtherRunError: they were learned by another trainer, for another CLIP, with other options or other pixels, or have a
            context for each of other classes.
    """
    then = Manifest.from_dict(state["kdpl"].get("manifest"))
    if then is None:
        print(f"Note: '{path}' has no manifest: that it fits this student, these options and class names is not verified")
        return None
    node, student, domains = f"TRAINER.{trainer.student_class.node}.", trainer.student, trainer.cfg.DATASET.TARGET_DOMAINS
    now, identity = config_of(trainer.cfg, trainer.student_class.node, trainer.distilled), trainer.clip.identity[:16]
    keys = {"TRAINER.NAME", *PIXELS}
    keys |= {key for key in {*then.config, *now} if key.startswith(node) and not key.endswith(".PREC")}
    keys |= {"MODEL.BACKBONE.NAME"} if identity != then.facts.get("student") else set()
    if now.get("DATASET.NAME") == then.config.get("DATASET.NAME") and domains:
        keys.add("DATASET.SOURCE_DOMAINS")  # what was trained on is not left out
    facts: dict[str, Any] = {"student": identity}
    facts |= {"class names": trainer.class_names} if student.class_specific else {}
    facts |= {"template": trainer.template()} if student.uses_template else {}
    asked = Manifest({k: now[k] for k in sorted(keys) if k in now}, facts)
    learned = Manifest({k: then.config[k] for k in sorted(keys) if k in then.config}, {k: then.facts.get(k) for k in facts})
    compare(learned, asked, f"'{path.parent.parent}'", "Evaluate the prompts with the settings that they were learned with.")
    return then


def bundle_of(trainer: "PromptTrainer") -> Bundle:
    """Return a trainer's current prompts with everything needed to use them."""
    cfg, teacher = trainer.cfg, trainer.teacher_name()
    return Bundle(
        parameters=trainer.student.learned.state_dict(),
        variant=trainer.student_class.__name__,
        trainer=cfg.TRAINER.NAME,
        backbone=cfg.MODEL.BACKBONE.NAME,
        backbone_sha256=trainer.clip.weights_digest,
        backbone_design=trainer.clip.design,
        options=dict(trainer.student.options),
        preprocessing=trainer.clip.preprocessing,
        dataset=cfg.DATASET.NAME,
        template=trainer.template(),
        classnames=trainer.class_names,
        teacher=teacher,
        class_agnostic=teacher is not None and cfg.TRAINER.KDPL.CLASS_AGNOSTIC,
        epoch=trainer.finished_epochs,
        results=[] if trainer.last_result is None else [dict(trainer.last_result)],
        config=cfg.dump(),
        manifest=trainer.manifest and trainer.manifest.to_dict(),
    )
