"""The training of a fit: the existing trainer, its log in a file and its progress in one bar."""

import contextlib
import os
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm
from yacs.config import CfgNode

from kdpl.common.messages import short_reason
from kdpl.common.signals import Interrupted

STEP = re.compile(r"epoch \[(\d+)/(\d+)\] batch \[(\d+)/(\d+)\]")


class Bar:
    """A terminal that shows the trainer's lines as a progress bar with the time left; other lines are in the log alone."""

    def __init__(self, out: TextIO, quiet: bool):
        self.out = out
        self._bar = tqdm(total=0, unit="step", desc="training", file=out, disable=True if quiet else None, leave=False)
        self._line = ""

    def write(self, text: str) -> int:
        self._line += text
        *lines, self._line = self._line.split("\n")
        for line in lines:
            if step := STEP.search(line):
                epoch, epochs, batch, batches = map(int, step.groups())
                self._bar.total = epochs * batches
                self._bar.update((epoch - 1) * batches + batch - self._bar.n)
        return len(text)

    def flush(self) -> None:
        self.out.flush()

    def isatty(self) -> bool:
        return False

    def close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def silent_log(quiet: bool) -> Iterator[None]:
    """Show nothing but a bar of what is printed inside."""
    bar, before = Bar(sys.stderr, quiet), sys.stdout
    try:
        sys.stdout = bar
        yield
    finally:
        log, sys.stdout = sys.stdout, before
        with contextlib.suppress(AttributeError, OSError):
            log.file.close()
        bar.close()


def train(cfg: CfgNode, quiet: bool) -> Any:
    """Train as `train.py` does, and return the trainer.

    Raises:
        ValueError, OSError, FloatingPointError, OccupiedError: as `train.py` reports them.
        OtherRunError: the output folder has a run with other settings; nothing there is changed.
        Interrupted: by a signal, after the state is saved.
    """
    import kdpl.datasets
    import kdpl.trainers  # noqa: F401
    from kdpl.trainers import records

    from dassl.engine import TRAINER_REGISTRY, build_trainer  # isort: skip
    from dassl.utils import set_random_seed, setup_logger  # isort: skip

    records.check_settings(cfg, TRAINER_REGISTRY.get(cfg.TRAINER.NAME), ())
    os.makedirs(cfg.OUTPUT_DIR, exist_ok=True)
    try:
        with silent_log(quiet):
            setup_logger(cfg.OUTPUT_DIR)
            print(f"** Config **\n{cfg}")
            set_random_seed(cfg.SEED)
            trainer = build_trainer(cfg)
            trainer.command = {"config_name": "fit", "model_dir": None}
            trainer.train()
    except Interrupted as stop:  # it has said so in the log
        print(stop, file=sys.stderr)
        raise
    return trainer


def estimate(cfg: CfgNode, images: int, classes: int) -> str:
    """Return what the training takes on this machine, in words; where that cannot be said, why."""
    import torch

    from kdpl import students
    from kdpl.experiments.estimate import Run, count, duration, price, summarise
    from kdpl.experiments.machines import GPUS, find_machine

    cuda = torch.cuda.is_available() and cfg.USE_CUDA
    name = next((gpu for gpu in GPUS if gpu in torch.cuda.get_device_name().lower().replace(" ", "")), "") if cuda else "cpu"
    if not name:
        return f"no estimate: the speed of this {torch.cuda.get_device_name()} is not known"
    try:
        learner = getattr(students, cfg.TRAINER.NAME.removeprefix("KDPL_"))
        run, machine = Run(cfg, learner, max(2, classes), images, 1, False), find_machine(name)
        estimates = {kind: price(run, count(run, machine.device_type, kind == "known"), machine) for kind in run.epochs}
        summary = summarise(run, machine, estimates)
    except (ValueError, OSError, RuntimeError) as error:
        return f"no estimate ({short_reason(error)})"
    fits = "" if summary["fits"] else ", which this machine does not have"
    return f"about {duration(summary['run_s'])} on this {name.upper()}, {summary['peak_gb']:.1f} GB of memory{fits}"
