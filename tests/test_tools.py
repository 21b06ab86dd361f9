"""The commands that made the embedded benchmark, as far as they run without a download."""

import sys

import numpy as np
import pytest
import torch
from support import ROOT, mostly_slow, processes

from kdpl.clip import load_clip
from kdpl.datasets.emoji.art import drawings, things

STEPS = {"steps": 5, "batch": 12, "rate": 1e-3, "seed": 3}


@pytest.fixture
def pretrain(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    import pretrain

    monkeypatch.setattr(pretrain, "POOL", {"student": 40, "teacher": 40})
    return pretrain


def save_art(path, styles):
    """Write the Twemoji and Fluent drawings of 20 things under the names of two styles."""
    rgba = np.stack([drawings("twemoji"), drawings("fluent")], 1)
    rgba[20:] = 0
    np.savez(path, rgba=rgba, names=[thing.name for thing in things()], styles=styles)
    return path


@pytest.fixture
def art(tmp_path):
    """The embedded drawings of 20 things, under the name of another style."""
    return save_art(tmp_path / "art.npz", ["noto-v1", "emojione"])


@pytest.mark.parametrize("kind", mostly_slow(["student", "teacher"], sample=("student",)))
def test_a_pretraining_repeats_and_its_file_is_loaded_and_goes_on(kind, pretrain, art, tmp_path):
    drawings, file = pretrain.Art(art), tmp_path / "weights.safetensors"
    once, again = (pretrain.train(kind, drawings, **STEPS) for _ in range(2))
    assert all(torch.equal(again[key], value) for key, value in once.items())
    pretrain.write(once, file)
    clip = load_clip(f"openai:{file}")
    torch.testing.assert_close(clip.model.text_projection.float(), once["text_projection"], atol=1e-3, rtol=1e-3)
    further = pretrain.train(kind, drawings, **STEPS, start=file)
    assert not torch.equal(further["text_projection"], once["text_projection"])


@pytest.mark.slow
def test_a_student_never_sees_a_style_of_the_benchmark(pretrain, tmp_path):
    art = save_art(tmp_path / "art.npz", ["twemoji", "fluent"])
    with pytest.raises(SystemExit, match=r"holds styles of the benchmark \(fluent, twemoji\)"):
        pretrain.Art(art, without=pretrain.BENCHMARK_STYLES)
    command = [sys.executable, str(ROOT / "tools/pretrain.py"), "student", str(art), "unused.safetensors"]
    process = processes.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1 and "holds styles of the benchmark" in process.stderr
