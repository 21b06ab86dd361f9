"""scripts/gpu_check.sh, tried on the CPU: what it checks is checked, and what fails is named."""

import json
import sys

import pytest
import torch
from support import ROOT, STEPPED, mostly_slow, processes


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    monkeypatch.delitem(sys.modules, "gpu_check", raising=False)
    import gpu_check

    yield gpu_check
    sys.modules.pop("gpu_check", None)


def run(gpu_check, tmp_path, parts, *flags):
    """Run other parts than its own; return the exit status and the JSON."""
    status = gpu_check.main(["--device", "cpu", "--small", "--json", str(tmp_path / "o.json"), *flags], lambda at: parts)
    return status, json.loads((tmp_path / "o.json").read_text())


def python(code):
    return [sys.executable, "-c", code]


RIGHT = python("print('a line'); print('{\"loss\": 0.5}')")


def test_what_fails_is_named_with_its_output_and_the_others_are_run(gpu_check, tmp_path, capsys):
    broken = python("print('the loss'); raise SystemExit('is not what it was')")
    parts = {"broken": broken, "right": RIGHT, "silent": python("print('done')")}
    status, result = run(gpu_check, tmp_path, parts)
    assert status == 1 and not result["ok"] and result["failed"] == ["broken", "silent"]
    assert result["parts"]["right"]["figures"] == {"loss": 0.5}
    assert result["parts"]["broken"]["error"] == "exit status 1"
    assert "the loss" in result["parts"]["broken"]["output"] and "is not what it was" in result["parts"]["broken"]["output"]
    assert result["parts"]["silent"]["error"] == "its last line is not JSON"
    out, err = capsys.readouterr()
    assert "broken ... FAILED: exit status 1" in out and "1 of 3 parts are right" in out and "is not what it was" in err


@pytest.mark.slow
def test_what_takes_too_long_is_stopped_and_what_finds_no_time_is_not_right(gpu_check, tmp_path):
    parts = {"endless": python("import time; print('begun', flush=True); time.sleep(60)"), "late": RIGHT}
    status, result = run(gpu_check, tmp_path, parts, "--minutes", "0.02")
    assert status == 1 and result["failed"] == ["endless", "late"]
    assert result["parts"]["endless"]["error"].startswith("stopped after 1 s")
    assert result["parts"]["late"]["error"] == "not run: the time was up"


def test_on_a_card_all_that_is_promised_is_run(gpu_check):
    parts = gpu_check.commands(gpu_check.Setting("cuda", small=False))
    named = " ".join(word for command in parts.values() for word in command)
    for file in ("test_golden", "clip/test_precision", "test_gpu", "training/test_determinism"):
        assert f"tests/{file}.py" in named and (ROOT / f"tests/{file}.py").is_file()
    assert {"learners", "precisions", "class-agnostic", "views", "timings"} <= parts.keys()
    assert set(gpu_check.learner_names()) == set(STEPPED)
    assert "--small" not in named
    at = gpu_check.Setting("cuda", small=False)
    assert (at.students, at.teacher, at.precision) == (("ViT-B/32", "ViT-B/16"), "ViT-H/14", "fp16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu_check, tmp_path, capsys):
    assert gpu_check.main(["--json", str(tmp_path / "o.json")]) == 2
    assert "PyTorch sees no GPU. --device cpu --small tries this script itself" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "name", mostly_slow(["learners", "precisions", "class-agnostic", "timings"], sample=("precisions", "class-agnostic"))
)
def test_its_parts_run_on_a_cpu(name, tmp_path):
    command = [sys.executable, ROOT / "scripts/gpu_check.py", "--device", "cpu", "--small", "--part", name]
    process = processes.run(list(map(str, command)), cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    figures = json.loads(process.stdout.splitlines()[-1])
    if name == "learners":
        assert list(figures) == [f"{learner}, small" for learner in ("CoOp", "CoCoOp", "VPT", "MaPLe")]
    elif name == "precisions":
        assert list(figures["CoOp"]) == ["fp32", "fp16", "amp", "bf16"]
    elif name == "timings":
        assert [row["step"] for row in figures["CoOp 4"]] == ["published", "views 0", "views warm"]
    else:
        assert figures["names"] == 200 and len(figures["losses"]) == 3
