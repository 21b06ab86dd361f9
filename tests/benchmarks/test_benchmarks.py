"""The benchmarks of training steps still run, and take both ways of a step on the same numbers."""

import json
import sys

import pytest
from support import ROOT, processes

pytestmark = pytest.mark.slow

STEP = ("--student", "small", "--teacher", "small", "--classes", "12", "--batch", "2", "--steps", "1", "--preload")


def run(script, *flags):
    command = [sys.executable, ROOT / "benchmarks" / script, *flags]
    process = processes.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def step(kind, *flags):
    (row,) = run("train_step.py", *STEP, "--measure", kind, *flags)["rows"]
    return row


def test_the_published_step_and_ours_have_the_same_loss():
    published, ours = (step(kind, "--trainer", "KDPL_MaPLe") for kind in ("published", "views 0"))
    assert ours["first_loss"] == pytest.approx(published["first_loss"], rel=1e-3)


def test_known_views_cost_no_image_tower():
    warm = step("views warm")
    assert warm["teacher_image"] == warm["student_image"] == 0 < warm["text"]


def test_precisions_are_those_asked_for():
    exact, half = (step("views 0", "--precision", precision)["first_loss"] for precision in ("fp32", "bf16"))
    assert half != exact and half == pytest.approx(exact, rel=0.06)
