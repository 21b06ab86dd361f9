"""A training step of a KDPL trainer, part by part: with fresh augmentations, with warm views, and the published way.

The trainer is the real one, on JPEG files of random content and ImageNet's class names; student and teacher have a real model's
sizes and random weights. Each kind of step runs in its own process, which gives its peak memory; "speedup" is the
published step's time over that of the row. With --preload the batches are in memory before, so that no step decodes images.
"""

import argparse
import itertools
import tempfile
import time
from collections import defaultdict
from pathlib import Path

import common
import numpy as np
import torch
from common import (
    SIZES,
    architecture,
    device_seconds,
    in_own_process,
    machine,
    now,
    peak_memory,
    print_rows,
    random_clip,
    settings_of,
)
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image
from published import full_image_features, take_the_published_way
from torchvision.transforms import Compose, Normalize, ToTensor

import kdpl.trainers.evaluation
import kdpl.trainers.prompts
import kdpl.trainers.teachers
from kdpl.config.defaults import extend_cfg, merge_file
from kdpl.datasets.base import ClassListDataset
from kdpl.students import Student

from dassl.config import get_cfg_default  # isort: skip  after kdpl, which makes it importable
from dassl.data.datasets import DATASET_REGISTRY, Datum  # isort: skip
from dassl.engine import build_trainer  # isort: skip

KINDS = ("published", "views 0", "views warm")
PARTS = ("data", "teacher_image", "student_image", "text", "backward", "optimiser")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", default="KDPL_CoOp", help="a KDPL trainer")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--student", default="ViT-B/32", choices=SIZES, help="whose sizes the student has")
    parser.add_argument("--teacher", default="ViT-L/14", choices=SIZES, help="whose sizes the teacher has")
    parser.add_argument("--views", type=int, default=2, help="fixed views of an image, in the row of warm views")
    parser.add_argument("--reference", action="store_true", help="take the step the published way, too")
    parser.add_argument("--steps", type=int, default=3, help="of which the median counts, after one that does not")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp32", help="PREC of student and teacher: fp32, fp16, amp or bf16")
    parser.add_argument("--preload", action="store_true", help="load the batches before the steps")
    parser.add_argument("--cpu-time", action="store_true", help="count the seconds of the processor, on a busy machine")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", choices=KINDS, help="one kind alone, in this process")
    args = parser.parse_args()
    if args.cpu_time:
        common.clock = time.process_time
    if args.measure:
        print_rows([measure(args, args.measure)], True)
        return
    print(
        f"{machine(args.device)}; {args.trainer}, {args.classes} classes, batch {args.batch}, {args.student}-sized student, "
        f"{args.teacher}-sized teacher, {args.precision}"
    )
    print_rows(compare(args), args.json)


def compare(args: argparse.Namespace) -> list[dict]:
    """Return a row for each kind of step, measured in processes of their own."""
    skipped = ("json", "measure", "reference", "preload", "cpu_time")
    own = [x for k, v in vars(args).items() if k not in skipped for x in (f"--{k}", v)]
    own += ["--preload"] * args.preload + ["--cpu-time"] * args.cpu_time
    rows = [in_own_process(__file__, *own, "--measure", kind)["rows"][0] for kind in KINDS[not args.reference :]]
    for row in rows:
        if args.reference and rows[0]["step_s"] and row["step_s"]:
            row["speedup"] = rows[0]["step_s"] / row["step_s"]
    return rows


def measure(args: argparse.Namespace, kind: str) -> dict:
    """Return the times of a step's parts and of the whole in seconds, its loss, and this process's peak memory in GB.

    A step that does not fit the memory of the GPU has no times.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _measure(args, kind, Path(folder))
    except torch.cuda.OutOfMemoryError:
        return {"step": kind, "step_s": None, "peak_gb": f"out of memory: more than {peak_memory():.1f}"}


def _measure(args: argparse.Namespace, kind: str, folder: Path) -> dict:
    trainer = build(args, kind, folder, images=2 * args.batch)
    steps = step_forever(trainer, args.preload)
    loss = float(next(steps)["loss"])  # of the same images and augmentations, but for fixed views
    if kind == "views warm":
        while not all(features.known.all() for features in trainer.view_features):
            next(steps)
    next(steps)
    row = {"step_s": device_seconds(lambda: next(steps), args.steps, args.device), "peak_gb": peak_memory()}
    spent = time_parts(trainer, args.device)
    next(steps)
    spent.clear()
    started = now(args.device)
    for _ in range(args.steps):
        next(steps)
    parts = {part: spent[part] / args.steps for part in PARTS}
    rest = (now(args.device) - started) / args.steps - sum(parts.values())
    return {"step": kind, **parts, "rest": rest, "first_loss": loss, **row}


def build(args: argparse.Namespace, kind: str, folder: Path, images: int, *options: object):
    """Return a trainer of the command line's, ready to train; `options` are more pairs of KEY VALUE."""
    files = photos(folder, images)
    names = [str(name) for name in IMAGENET_CLASSNAMES[: args.classes]]

    class Photos(ClassListDataset):
        def __init__(self, cfg):
            items = [Datum(impath=str(path), label=i % len(names)) for i, path in enumerate(files)]
            super().__init__(dict(enumerate(names)), train_x=items, val=None, test=items)

    DATASET_REGISTRY.register(force=True)(Photos)
    seeds = {"student": 1, "teacher": 2}

    def load(name: str, precision: str = "fp32", device: object = "cpu", frozen: str | None = None):
        return random_clip(getattr(args, name), seeds[name], str(device), precision, frozen)

    kdpl.trainers.prompts.load_clip = kdpl.trainers.teachers.load_clip = load
    for module in (kdpl.trainers.prompts, kdpl.trainers.teachers, kdpl.trainers.evaluation):
        module.describe = lambda name: architecture(getattr(args, name))

    cfg = get_cfg_default()
    extend_cfg(cfg)
    merge_file(cfg, settings_of(args.trainer))
    learner = Student.known[args.trainer.removeprefix("KDPL_")].node
    cfg.merge_from_list(
        [
            *("TRAINER.NAME", args.trainer, "DATASET.NAME", "Photos", "OUTPUT_DIR", str(folder / "out"), "SEED", 1),
            *("MODEL.BACKBONE.NAME", "student", "TRAINER.KDPL.TEACHER", "teacher", "DATALOADER.NUM_WORKERS", 0),
            *("DATALOADER.TRAIN_X.BATCH_SIZE", args.batch, "USE_CUDA", args.device == "cuda", "VERBOSE", False),
            *("TRAINER.KDPL.PREC", args.precision, f"TRAINER.{learner}.PREC", args.precision),
            *("INPUT.SIZE", (architecture(args.student).resolution,) * 2),
            *("TRAINER.KDPL.VIEWS", args.views if kind == "views warm" else 0),
            *options,
        ]
    )
    trainer = build_trainer(cfg)
    trainer.load_for_training()
    if kind == "published":
        take_the_published_way(trainer.student)
        teacher = trainer.objective.teacher
        teacher.image_features = lambda images: full_image_features(teacher.clip, teacher.adapt(images))
        dataset, steps = trainer.train_loader_x.dataset, trainer.train_loader_x.dataset.transform.transforms[:-1]
        dataset.transform = Compose([*steps, ToTensor(), Normalize(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)])
    return trainer


def photos(folder: Path, count: int) -> list[Path]:
    """Write JPEG files of 500 x 375 pixels, of smooth random content."""
    paths = []
    for i in range(count):
        coarse = np.random.default_rng(i).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        paths.append(folder / f"{i}.jpg")
        Image.fromarray(coarse).resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def step_forever(trainer, preload: bool = False):
    """Take a training step at each `next`, epoch after epoch; with `preload` on the batches of as many epochs as views."""
    trainer.set_model_mode("train")
    loader = trainer.train_loader_x
    trainer.num_batches = len(loader) + 1  # the schedule is never stepped
    loaded = []
    for epoch in range(max(1, loader.views)) if preload else ():
        loader.epoch = epoch
        loaded += loader
    while True:
        batches = itertools.cycle(loaded) if loaded else iter(loader)
        while True:
            batch = trainer.next_batch(batches) if hasattr(trainer, "next_batch") else next(batches, None)
            if batch is None:
                break
            trainer.batch_idx = 0
            yield trainer.forward_backward(batch)
        loader.epoch += 1


def time_parts(trainer, device: str) -> dict[str, float]:
    """Have the trainer's parts add up the time they take, in seconds, in the dictionary that is returned."""
    spent: dict[str, float] = defaultdict(float)
    inside: list[str] = []

    def timed(owner: object, name: str, part: str) -> None:
        call = getattr(owner, name)

        def wrapper(*args, **kwargs):
            if inside:  # a part within a part is counted once
                return call(*args, **kwargs)
            inside.append(part)
            started = now(device)
            try:
                return call(*args, **kwargs)
            finally:
                spent[part] += now(device) - started
                inside.pop()

        setattr(owner, name, wrapper)

    student = trainer.student
    trainer.next_batch = lambda batches: next(batches, None)
    timed(trainer, "next_batch", "data")
    timed(trainer.objective.teacher, "image_features", "teacher_image")
    timed(student, "frozen_image_features", "student_image")
    timed(student, "image_features", "student_image")
    timed(student, "text_features", "text")
    timed(trainer.optim, "step", "optimiser")
    backward = torch.Tensor.backward

    def timed_backward(*args, **kwargs):
        started = now(device)
        backward(*args, **kwargs)
        spent["backward"] += now(device) - started

    torch.Tensor.backward = timed_backward
    return spent


if __name__ == "__main__":
    main()
