"""Check and time KDPL on one GPU: bash scripts/gpu_check.sh

The suite's tests on the card with the small CLIPs of the repository; then steps at the sizes of real models with random
weights, students as ViT-B/32 and ViT-B/16 and the teacher as ViT-H/14: every learner, half precision beside fp32,
class-agnostic training with 20,000 names, fixed views; then times beside the published way (benchmarks/train_step.py).

Each part is its own process. One that fails, or finds no time left, is named in the JSON, and the exit status is 1.
"""

import argparse
import gc
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
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


def timings(at: Setting) -> dict:
    """Time steps three ways: published, with fresh augmentations and with warm views; batches are loaded before."""
    from train_step import compare

    cases = (("CoOp", 32), ("CoCoOp", 1), ("CoCoOp", 8), ("MaPLe", 4), ("PromptSRC", 4))
    found = {}
    for learner, batch in cases[:1] if at.small else cases:
        args = argparse.Namespace(
            trainer=f"KDPL_{learner}", classes=12 if at.small else 1000, batch=4 if at.small else batch, views=2,
            student=at.students[0], teacher=at.teacher, device=at.device, precision=at.precision, preload=True,
            reference=True, steps=1 if at.small else 10, json=False, measure=None, cpu_time=False,
        )  # fmt: skip
        found[f"{learner} {args.batch}"] = compare(args)
    return found


def _finite(value: float) -> bool:
    return abs(value) < float("inf")


OWN = {"learners": learners, "precisions": precisions, "class-agnostic": class_agnostic, "views": views, "timings": timings}

# ---------------------------------------------------------------------------------------------------------------------- running


def commands(at: Setting) -> dict[str, list[str]]:
    """Return the command of each part, in their order."""
    workers = min(4, (os.cpu_count() or 1) // 2) if at.device == "cuda" and importlib.util.find_spec("xdist") else 1
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *(["-n", str(workers)] if workers > 1 else [])]
    a_trial = at.device == "cpu"
    only = ["-k", at.device if not a_trial else f"{at.device} and views"]
    tests = {"golden files": "test_golden", "half precision": "clip/test_precision", "runs": "test_gpu"}
    parts = {name: [*pytest, f"tests/{file}.py", *only] for name, file in tests.items() if not a_trial or name == "runs"}
    if not a_trial:
        parts["determinism"] = [*pytest, "tests/training/test_determinism.py", "-k", "gpu"]
    own = [sys.executable, str(Path(__file__)), "--device", at.device, *["--small"] * at.small, "--part"]
    return parts | {name: [*own, name] for name in OWN}


def run_part(command: list[str], seconds: float) -> dict:
    """Run a part and return its entry in the JSON: `ok`, `seconds`, and its figures or the end of what it printed."""
    started = time.perf_counter()
    if seconds <= 0:
        return {"ok": False, "seconds": 0.0, "error": "not run: the time was up"}
    try:
        env = {**os.environ, "CUBLAS_WORKSPACE_CONFIG": ":4096:8"} if "pytest" in command else None  # of deterministic runs
        process = subprocess.run(
            command,
            cwd=ROOT,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
        output, error = process.stdout, f"exit status {process.returncode}" if process.returncode else ""
    except subprocess.TimeoutExpired as end:
        output, error = (end.stdout or b"").decode(errors="replace"), f"stopped after {seconds:.0f} s"
    entry: dict = {"ok": False, "seconds": round(time.perf_counter() - started, 1)}
    last = output.rstrip().splitlines()[-1] if output.strip() else ""
    if "pytest" in command:
        entry |= {"figures": {word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|skipped|error)", last)}}
        if not error and not entry["figures"].get("passed"):
            error = "no test ran"
    elif not error:
        try:
            entry["figures"] = json.loads(last)
        except ValueError:
            error = "its last line is not JSON"
    if error:
        return {**entry, "error": error, "output": output[-4000:]}
    return {**entry, "ok": True}


def about(at: Setting) -> dict:
    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    facts = {"device": at.device, "small": at.small, "torch": torch.__version__, "commit": commit, "cores": os.cpu_count()}
    if at.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        facts |= {"gpu": card.name, "memory_gb": card.total_memory / 1e9, "cuda": torch.version.cuda}
    return facts


def main(argv: list[str] | None = None, parts: Callable[..., dict[str, list[str]]] = commands) -> int:
    """Run the parts; return 0 if all of them are right, 1 if one failed, 2 if there is no such device."""
    parser = argparse.ArgumentParser(prog="scripts/gpu_check.sh", description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--small", action="store_true", help="small CLIPs, not real sizes: a trial of this script")
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"), metavar="FILE", help="where the result is written")
    parser.add_argument("--only", nargs="+", metavar="PART", help="some parts alone")
    parser.add_argument("--minutes", type=float, default=8, help="for all parts; what does not fit fails (default: 8)")
    parser.add_argument("--part", choices=OWN, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    at = Setting(args.device, args.small)
    if args.part:
        sys.path.insert(0, str(ROOT / "benchmarks"))
        with tempfile.TemporaryDirectory() as folder:
            os.environ["KDPL_CACHE"] = folder
            print("\n" + json.dumps(OWN[args.part](at)))
        return 0
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: PyTorch sees no GPU. --device cpu --small tries this script itself, on the CPU.", file=sys.stderr)
        return 2
    chosen = parts(at)
    if unknown := sorted({*(args.only or ())} - chosen.keys()):
        parser.error(f"--only: {', '.join(unknown)} is not one of {', '.join(chosen)}")
    end = time.perf_counter() + 60 * args.minutes
    result: dict = {**about(at), "ok": False, "failed": [], "parts": {}}
    for name in args.only or chosen:
        print(f"{name} ... ", end="", flush=True)
        entry = result["parts"][name] = run_part(chosen[name], end - time.perf_counter())
        print(f"{'ok' if entry['ok'] else 'FAILED: ' + entry['error']} ({entry['seconds']} s)", flush=True)
        result["failed"] = [part for part, each in result["parts"].items() if not each["ok"]]
        result["ok"] = len(result["parts"]) == len(args.only or chosen) and not result["failed"]
        args.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
    for name in result["failed"]:
        print(f"\n--- {name}\n{result['parts'][name].get('output', '')}", file=sys.stderr)
    print(f"{len(result['parts']) - len(result['failed'])} of {len(result['parts'])} parts are right: {args.json}")
    return 0 if result["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
