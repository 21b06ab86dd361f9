"""The benchmarks of training steps still run, and take both ways of a step on the same numbers."""

import json
import subprocess
import sys

import pytest
from support import ROOT, mostly_slow, processes
from support.card import needs_simulated_card

pytestmark = pytest.mark.slow

STEP = ("--student", "small", "--teacher", "small", "--classes", "12", "--batch", "2", "--steps", "1", "--preload")
RATES = {"float32": 1e10, "bandwidth": 1e10}


def run(script, *flags):
    command = [sys.executable, ROOT / "benchmarks" / script, *flags]
    process = processes.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return json.loads(process.stdout.splitlines()[-1])


def step(kind, *flags):
    (row,) = run("train_step.py", *STEP, "--measure", kind, *flags)["rows"]
    return row


def test_the_published_step_and_ours_have_the_same_loss_and_ours_does_less():
    published, ours = (step(kind, "--trainer", "KDPL_MaPLe", "--rates", json.dumps(RATES)) for kind in ("published", "views 0"))
    assert ours["first_loss"] == pytest.approx(published["first_loss"], rel=1e-3)
    assert ours["bound_s"] < 0.5 * published["bound_s"], "by operations counted, not by a clock"
    for row in (published, ours):
        assert row["times_bound"] == pytest.approx(row["step_s"] / row["bound_s"])
    slower = step("views 0", "--trainer", "KDPL_MaPLe", "--rates", json.dumps({k: v / 2 for k, v in RATES.items()}))
    assert slower["bound_s"] == pytest.approx(2 * ours["bound_s"])


def test_known_views_cost_no_image_tower():
    warm = step("views warm")
    assert warm["teacher_image"] == warm["student_image"] == 0 < warm["text"]


def test_precisions_are_those_asked_for():
    exact, half = (step("views 0", "--precision", precision)["first_loss"] for precision in ("fp32", "bf16"))
    assert half != exact and half == pytest.approx(exact, rel=0.06)


def test_the_rates_of_a_card_are_measured():
    rates = run("card.py", "--device", "cpu", "--small", "--precision", "bf16", "--measure")
    assert rates.keys() == {"float32", "bfloat16", "bandwidth"} and min(rates.values()) > 1e6


@pytest.mark.parametrize("learner", mostly_slow(["CoOp", "PromptSRC"], sample=("CoOp",)))
def test_steps_with_and_without_class_names_are_measured(learner):
    small = ("--student", "small", "--teacher", "small", "--names", 8, "--vocabulary", 20, "--batch", 2, "--steps", 1)
    (row,) = run("class_agnostic.py", "--learner", learner, *small, "--measure", "time")["rows"]
    assert row.keys() == {"class-aware_seconds", "class-agnostic_seconds"} and min(row.values()) > 0


@needs_simulated_card
def test_bounds_of_a_card_are_estimated_from_counts():
    command = [sys.executable, ROOT / "benchmarks/bounds.py", "--classes", "20", "--json"]  # imports PyTorch after the card
    process = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    published, ours = json.loads(process.stdout.splitlines()[-1])["rows"]
    assert published["GFLOP"] == pytest.approx(2 * 12 * 20 * 77 * 24 * 512**2 / 1e9, rel=0.1), "projections and MLPs, twice"
    assert ours["GFLOP"] < published["GFLOP"] / 5 and min(published["kernels"], ours["kernels"]) > 300
    for row in (published, ours):
        assert row["t4 ms"] == pytest.approx(row["GFLOP"] / 65) and row["launches ms"] == pytest.approx(8e-3 * row["kernels"])
