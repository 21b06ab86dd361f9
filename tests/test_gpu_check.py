"""scripts/gpu_check.py, tried on the CPU: what it checks is checked, and what fails is named."""

import json
import sys

import pytest
import torch
from support import ROOT, STEPPED, mostly_slow, processes


@pytest.fixture
def gpu_check(monkeypatch):
    for folder in ("scripts", "benchmarks"):
        monkeypatch.syspath_prepend(str(ROOT / folder))
    import gpu_check

    yield gpu_check
    sys.modules.pop("gpu_check", None)


def test_all_learners_are_tried_at_real_sizes(gpu_check):
    at = gpu_check.Setting("cuda", small=False)
    assert set(gpu_check.learner_names()) == set(STEPPED)
    assert (at.students, at.teacher, at.precision) == (("ViT-B/32", "ViT-B/16"), "ViT-H/14", "fp16")


def test_a_part_that_fails_is_named_and_the_others_are_run(gpu_check, monkeypatch, capsys):
    def fail(at):
        raise AssertionError("a loss that is not finite")

    monkeypatch.setattr(gpu_check, "PARTS", {"one": fail, "two": lambda at: {"loss": 0.5}})
    assert gpu_check.main(["--device", "cpu", "--small", "--only", "one", "two"]) == 1
    said = capsys.readouterr()
    assert said.out == 'FAILED: one\n{"two": {"loss": 0.5}}\n' and "a loss that is not finite" in said.err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu_check, capsys):
    assert gpu_check.main([]) == 2
    assert "PyTorch sees no GPU. --device cpu --small tries this script itself" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", mostly_slow(["learners", "precisions", "class-agnostic", "views"], sample=("precisions", "class-agnostic"))
)
def test_its_parts_run_on_a_cpu(name, tmp_path):
    command = [sys.executable, ROOT / "scripts/gpu_check.py", "--device", "cpu", "--small", "--only", name]
    process = processes.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    figures = json.loads(process.stdout.splitlines()[-1])[name]
    if name == "learners":
        assert list(figures) == [f"{learner}, small" for learner in ("CoOp", "CoCoOp", "VPT", "MaPLe")]
    elif name == "precisions":
        assert list(figures["CoOp"]) == ["fp32", "fp16", "amp", "bf16"]
    elif name == "class-agnostic":
        assert figures["names"] == 200 and len(figures["losses"]) == 3
    else:
        assert figures["loss_known"] == pytest.approx(figures["loss_afresh"], rel=1e-6)
