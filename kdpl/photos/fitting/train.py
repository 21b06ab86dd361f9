"""The training of a candidate: the existing trainer, from features that are known, its log in a file and its progress shown."""

import re
import sys
import time
from contextlib import closing, redirect_stdout
from typing import IO, TYPE_CHECKING, Any

import torch
from yacs.config import CfgNode

from kdpl.common.command import escape_streams
from kdpl.common.signals import Interrupted
from kdpl.distill.views import FeatureTable, ViewFeatures
from kdpl.photos.fitting.candidates import Candidate, photos_for, settings
from kdpl.photos.fitting.features import Features
from kdpl.photos.fitting.plan import write_json
from kdpl.photos.labels import TRAIN
from kdpl.photos.waiting import Doing

if TYPE_CHECKING:
    from kdpl.photos.fitting.run import Fit

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


def train(fit: "Fit", candidate: Candidate) -> None:
    """Train a candidate as `train.py` does, in its own folder.

    Raises:
        ValueError, OSError, FloatingPointError, OccupiedError: as `train.py` reports them.
        OtherRunError: the folder has a run with other settings; nothing there is changed.
        Interrupted: by a signal, after the state is saved.
    """
    import kdpl.datasets
    import kdpl.trainers  # noqa: F401
    from kdpl.trainers import records

    from dassl.engine import TRAINER_REGISTRY, build_trainer  # isort: skip

    images = photos_for(fit.plan, candidate, fit.parts[TRAIN].names)
    cfg = settings(fit.plan, candidate, images, fit.text_size)
    records.check_settings(cfg, TRAINER_REGISTRY.get(cfg.TRAINER.NAME), ())
    write_json(fit.plan.folder(candidate) / "photos.json", images)
    try:
        with (
            Doing(f"Learning {candidate.title}", 1, "step", fit.quiet) as doing,
            redirect_stdout(Bar(doing)),
            closing(_log(cfg)),
        ):
            trainer = build_trainer(cfg)
            trainer.command = {"config_name": "fit", "model_dir": None}
            trainer.loaded_teachers, trainer.labelled = [fit.teacher_clip], fit.labelled
            if candidate.from_features:
                trainer.view_features = known_features(trainer, fit.features)
            trainer.train()
    except Interrupted as stop:  # it has said so in the log
        print(stop, file=sys.stderr)
        raise


def _log(cfg: CfgNode) -> IO[str]:
    """Begin the log of a run with its settings, seed the generators, and return its file."""
    from dassl.utils import set_random_seed, setup_logger

    setup_logger(cfg.OUTPUT_DIR)
    escape_streams()
    print("** Config **", cfg, sep="\n")
    set_random_seed(cfg.SEED)
    return sys.stdout.file


def known_features(trainer: Any, features: Features) -> list[ViewFeatures]:
    """Return the features of a pass as those of a trainer's one fixed view.

    Raises:
        ValueError: a photo has changed since the pass.
    """
    images, place = trainer.training_images, {name: i for i, name in enumerate(features.names)}
    rows = torch.tensor([place[image.name] for image in images])
    if changed := [image.name for image, row in zip(images, rows, strict=True) if image.content != features.contents[row]]:
        raise ValueError(f"'{changed[0]}' has changed since its features were computed: start the same command again.")
    found = []
    for values in [features.teacher, features.frozen][: 1 + trainer.student.reads_frozen_image_features]:
        table = FeatureTable(images, 1, values.shape[1], torch.float32)
        table.put(torch.arange(len(images)), torch.zeros(len(images), dtype=torch.long), values[rows])
        found.append(ViewFeatures(_unknown, table, 1, trainer.device))
    return found


def _unknown(images: torch.Tensor) -> torch.Tensor:
    raise RuntimeError(f"{len(images)} photos have no features: the pass over the photos should have computed all.")


def seconds(fit: "Fit", candidate: Candidate) -> float:
    """Return about how long a candidate's training from features takes, by steps with some of the names."""
    from kdpl.config.defaults import node_of, student_options
    from kdpl.students import Student

    plan, clip = fit.plan, fit.clip
    images = photos_for(plan, candidate, fit.parts[TRAIN].names)
    cfg = settings(plan, candidate, images, fit.text_size)
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
