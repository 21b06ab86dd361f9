"""The training of a candidate: the existing trainer, from features that are known, its log in a file and its progress shown."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from kdpl.clip.model import Clip
from kdpl.common.files import atomic_write
from kdpl.common.safe_text import print, print_safely, settings_lines
from kdpl.common.signals import Interrupted
from kdpl.distill.labelled import Labelled
from kdpl.distill.views import FeatureTable, ViewFeatures
from kdpl.photos.fitting.candidates import Candidate, photos_for, settings
from kdpl.photos.fitting.features import Features
from kdpl.photos.fitting.plan import Plan
from kdpl.photos.waiting import Doing

STEP = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")
TIMED_NAMES = 16  # names of the steps by which a training's time is estimated


class Bar:
    """A terminal that shows the trainer's lines as progress with the time left; other lines are in the log alone."""

    def __init__(self, doing: Doing):
        self.doing, self._line = doing, ""

    def write(self, text: str) -> int:
        self._line += text
        *lines, self._line = self._line.split("\n")
        for line in lines:
            if step := STEP.search(line):
                epoch, epochs, batch, batches = map(int, step.groups())
                self.doing.reached((epoch - 1) * batches + batch, epochs * batches)
        return len(text)

    def flush(self) -> None:
        self.doing.out.flush()

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def silent_log(doing: Doing) -> Iterator[None]:
    """Show nothing but the progress of what is printed inside."""
    before = sys.stdout
    try:
        sys.stdout = Bar(doing)
        yield
    finally:
        log, sys.stdout = sys.stdout, before
        with contextlib.suppress(AttributeError, OSError):
            log.file.close()


def train(
    plan: Plan,
    candidate: Candidate,
    photos: Sequence[str],
    features: Features,
    teacher: Clip,
    labelled: Labelled | None,
    text_size: float,
    quiet: bool,
) -> Any:
    """Train a candidate as `train.py` does, in its own folder, and return the trainer.

    Args:
        photos: that may be trained on.
        features: of all of these.
        teacher: loaded already.
        labelled: of these photos.
        text_size: see `settings`.

    Raises:
        ValueError, OSError, FloatingPointError, OccupiedError: as `train.py` reports them.
        OtherRunError: the folder has a run with other settings; nothing there is changed.
        Interrupted: by a signal, after the state is saved.
    """
    import kdpl.datasets
    import kdpl.trainers  # noqa: F401
    from kdpl.trainers import records

    from dassl.engine import TRAINER_REGISTRY, build_trainer  # isort: skip
    from dassl.utils import set_random_seed, setup_logger  # isort: skip

    images = photos_for(plan, candidate, photos)
    cfg = settings(plan, candidate, images, text_size)
    records.check_settings(cfg, TRAINER_REGISTRY.get(cfg.TRAINER.NAME), ())
    with atomic_write(plan.folder(candidate) / "photos.json", "w") as file:
        json.dump(images, file, indent=0)
    try:
        with Doing(f"Learning {candidate.title}", 1, "step", quiet) as doing, silent_log(doing):
            setup_logger(cfg.OUTPUT_DIR)
            print_safely(sys.stdout)
            print("** Config **", settings_lines(cfg), sep="\n")
            set_random_seed(cfg.SEED)
            trainer = build_trainer(cfg)
            trainer.command = {"config_name": "fit", "model_dir": None}
            trainer.loaded_teachers, trainer.labelled = [teacher], labelled
            if candidate.from_features:
                trainer.view_features = known_features(trainer, features)
            trainer.train()
    except Interrupted as stop:  # it has said so in the log
        print(stop, file=sys.stderr)
        raise
    return trainer


def known_features(trainer: Any, features: Features) -> list[ViewFeatures]:
    """Return the features of a pass as those of a trainer's one fixed view.

    Raises:
        ValueError: a photo has changed since the pass.
    """
    images, place = trainer.training_images, {name: i for i, name in enumerate(features.names)}
    rows = torch.tensor([place[image.name] for image in images])
    if changed := [image.name for image, row in zip(images, rows, strict=True) if image.content != features.contents[row]]:
        raise ValueError(f"'{changed[0]}' has changed since its features were computed: start the same command again.")
    wanted = [features.teacher, features.frozen] if trainer.student.reads_frozen_image_features else [features.teacher]
    found = []
    for values in wanted:
        table = FeatureTable(images, 1, values.shape[1], torch.float32)
        table.put(torch.arange(len(images)), torch.zeros(len(images), dtype=torch.long), values[rows])
        found.append(ViewFeatures(_unknown, table, 1, trainer.device))
    return found


def _unknown(images: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(f"{len(images)} photos have no features: the pass over the photos should have computed all.")


def seconds(plan: Plan, candidate: Candidate, photos: int, clip: Clip, text_size: float) -> float:
    """Return about how long a candidate's training from features takes, by steps with some of the names.

    Args:
        photos: how many may be trained on.
    """
    from kdpl.config.defaults import node_of, student_options
    from kdpl.students import Student

    images = photos_for(plan, candidate, plan.order[:photos])
    cfg = settings(plan, candidate, images, text_size)
    names = plan.names[:TIMED_NAMES]
    student = Student.known[candidate.learner](clip, student_options(cfg, node_of(candidate.trainer)), names, plan.template)
    student.learned.to(clip.device)
    batch = min(cfg.DATALOADER.TRAIN_X.BATCH_SIZE, len(images))
    frozen = torch.nn.functional.normalize(torch.randn(batch, clip.embed_dim, device=clip.device), dim=-1)
    prepared = student.prepare(names)
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        with clip.autocast():
            student(None, prepared, frozen=frozen).logits.square().mean().backward()
        student.zero_grad()
        if clip.device.type == "cuda":
            torch.cuda.synchronize()
        step = time.perf_counter() - start
    return step * max(1, len(plan.names) / len(names)) * cfg.OPTIM.MAX_EPOCH * (len(images) // batch)
