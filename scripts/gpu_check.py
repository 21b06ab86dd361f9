"""Check steps on a GPU at the sizes of real models with random weights, teacher as ViT-H/14: part of `scripts/gpu_check.sh`.

Every learner, half precision beside fp32, class-agnostic training with 20,000 names, fixed views. Prints a line of figures for
each part; one that fails is named, and the exit status is 1.
"""

import argparse
import gc
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

STEPS = 3
# Of the first loss beside that of fp32, relative; random CLIPs hardly differ from each other, so that their loss is small.
BOUNDS = {"fp16": 2e-2, "amp": 2e-2, "bf16": 6e-2}
FLOOR = 1e-6


def learner_names() -> tuple[str, ...]:
    """Return the names of all learners that take steps."""
    from kdpl.students import STEPPED

    return tuple(learner.__name__ for learner in STEPPED)


class Setting(NamedTuple):
    """Where and how large."""

    device: str
    small: bool

    @property
    def students(self) -> tuple[str, ...]:
        return ("small",) if self.small else ("ViT-B/32", "ViT-B/16")

    @property
    def teacher(self) -> str:
        return "small" if self.small else "ViT-H/14"

    @property
    def precision(self) -> str:
        return "bf16" if self.device == "cpu" else "fp16"

    def trainer(self, learner: str, folder: Path, *options: object, student: str = "", precision: str = "", views: int = 0):
        """Return a trainer on random photos with a real model's sizes (benchmarks/train_step.py)."""
        import train_step

        from kdpl.clip import model as rule

        rule.FP32_ON_CPU = ()  # a trial on a CPU computes what is asked for
        train_step.random_clip = _cached_clip()
        args = argparse.Namespace(
            trainer=f"KDPL_{learner}", classes=12 if self.small else 1000, batch=2 if self.small else 8, views=views,
            student=student or self.students[0], teacher=self.teacher, device=self.device,
            precision=precision or self.precision,
        )  # fmt: skip
        return train_step.build(args, "views warm" if views else "views 0", folder, 2 * args.batch, *options)


@cache
def _cached_clip() -> Callable:
    from common import random_clip

    return cache(random_clip)


# -------------------------------------------------------------------------------------------- parts at the sizes of real models


def learners(at: Setting) -> dict:
    """Take steps with every learner: losses are finite, and every learned parameter gets a gradient and moves."""
    import torch
    from common import peak_memory
    from train_step import step_forever

    found = {}
    for student in at.students:
        for learner in learner_names()[:4] if at.small else learner_names():
            with tempfile.TemporaryDirectory() as folder:
                trainer = at.trainer(learner, Path(folder), "OPTIM.WARMUP_EPOCH", -1, student=student)
                before = {name: p.detach().clone() for name, p in trainer.student.learned.named_parameters()}
                steps = step_forever(trainer, preload=True)
                losses = [float(next(steps)["loss"]) for _ in range(STEPS)]
                assert all(map(_finite, losses)), f"{learner}: losses {losses}"
                for name, p in trainer.student.learned.named_parameters():
                    assert torch.isfinite(p).all() and torch.isfinite(p.grad).all(), f"{learner}: {name} is not finite"
                    assert p.grad.abs().sum() > 0, f"{learner}: {name} has no gradient"
                    assert not torch.equal(p, before[name]), f"{learner}: {name} does not move"
                found[f"{learner}, {student}"] = {"losses": losses, "peak_gb": peak_memory()}
            del trainer, steps, before, p
            gc.collect()
            if at.device == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
    return found


def precisions(at: Setting) -> dict:
    """Compare the first loss of half precision with that of fp32, which cuDNN's convolutions do not round to TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
    found = {}
    for learner in ("CoOp",) if at.small else ("CoOp", "MaPLe"):
        losses = {}
        for precision in ("fp32", *BOUNDS):
            with tempfile.TemporaryDirectory() as folder:
                trainer = at.trainer(learner, Path(folder), precision=precision)
                trainer.set_model_mode("train")
                losses[precision] = trainer.compute_loss(next(iter(trainer.train_loader_x)))[0].item()
        found[learner] = losses
        for precision, bound in BOUNDS.items():
            error = abs(losses[precision] - losses["fp32"])  # of nearly the same distributions that of rounded logits, squared
            assert 0 < error < bound * losses["fp32"] + FLOOR, (
                f"{learner} {precision}: loss {losses[precision]}, in fp32 {losses['fp32']}"
            )
    return found


def class_agnostic(at: Setting) -> dict:
    """Take steps with a vocabulary of 20,000 names."""
    from train_step import step_forever

    from kdpl.text.vocabulary import load_vocabulary

    count, k = (200, 20) if at.small else (20_000, 1000)
    with tempfile.TemporaryDirectory() as folder:
        names = Path(folder, "names.txt")
        names.write_text("\n".join(load_vocabulary("imagenet21k")[:count]), encoding="utf-8")
        options = ("TRAINER.KDPL.CLASS_AGNOSTIC", True, "TRAINER.KDPL.VOCABULARY", str(names), "TRAINER.KDPL.K_MAX", k)
        started = time.perf_counter()
        trainer = at.trainer("CoOp", Path(folder), *options)
        built = time.perf_counter() - started
        steps = step_forever(trainer, preload=True)
        losses = [float(next(steps)["loss"]) for _ in range(STEPS)]
        state = trainer.objective.selection.state_dict()
    assert all(map(_finite, losses)), losses
    assert state["batches"] == STEPS and int(state["times"].sum()) == STEPS * k, "K_MAX names for each batch"
    return {"names": len(trainer.training_names), "losses": losses, "build_s": built}


def views(at: Setting) -> dict:
    """Compare the loss of known views with that of the same views computed afresh; no frozen tower runs for known ones."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = at.trainer("CoOp", Path(folder), views=2)
        trainer.set_model_mode("train")
        batch = next(iter(trainer.train_loader_x))
        afresh = trainer.compute_loss(batch)[0].item()

        def refuse(*_: object) -> None:
            raise AssertionError("a frozen tower ran for a known view")

        for features in trainer.view_features:
            features.compute = refuse
        known = trainer.compute_loss(batch)[0].item()
    assert _finite(afresh) and abs(known - afresh) <= 1e-6 * abs(afresh), f"{known} for known views, {afresh} afresh"
    return {"loss_afresh": afresh, "loss_known": known}


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


PARTS = {"learners": learners, "precisions": precisions, "class-agnostic": class_agnostic, "views": views}


def main(argv: list[str] | None = None) -> int:
    """Run the parts; return 0 if all of them are right, 1 if one failed, 2 if there is no such device."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="small CLIPs, not real sizes: a trial of this script")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="some parts alone")
    args = parser.parse_args(argv)
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch sees no GPU. --device cpu --small tries this script itself, on the CPU.", file=sys.stderr)
        return 2
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KDPL_CACHE"] = folder
        for name in args.only:
            try:
                print(json.dumps({name: PARTS[name](Setting(args.device, args.small))}), flush=True)
            except Exception:  # the next part is tried all the same
                traceback.print_exc()
                print(f"FAILED: {name}", flush=True)
                failed += 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
    sys.exit(main())
