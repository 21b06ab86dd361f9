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

    monkeypatch.setattr(pretrain, "SAVED_EVERY", 2)
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
def test_an_interrupted_pretraining_ends_with_the_same_weights(kind, pretrain, art, tmp_path, monkeypatch):
    drawings, state = pretrain.Art(art), tmp_path / "weights.state"
    expected = pretrain.train(kind, drawings, tmp_path / "other.state", **STEPS)
    step, done = pretrain.training_step, []

    def killed(*args):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(step(*args))
        return done[-1]

    monkeypatch.setattr(pretrain, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretrain.train(kind, drawings, state, **STEPS)
    monkeypatch.setattr(pretrain, "training_step", step)
    resumed = pretrain.train(kind, drawings, state, **STEPS)
    assert all(torch.equal(resumed[key], value) for key, value in expected.items())
    with pytest.raises(SystemExit, match="was written with"):
        pretrain.train(kind, drawings, state, **{**STEPS, "rate": 1e-4})
    with np.load(art) as file:
        arrays = dict(file)
    arrays["rgba"][0] //= 2
    np.savez(art, **arrays)
    with pytest.raises(SystemExit, match="was written with"):  # other drawings of the same styles
        pretrain.train(kind, pretrain.Art(art), state, **STEPS)


@pytest.mark.slow
def test_a_student_never_sees_a_style_of_the_benchmark(pretrain, tmp_path):
    art = save_art(tmp_path / "art.npz", ["twemoji", "fluent"])
    with pytest.raises(SystemExit, match=r"holds styles of the benchmark \(fluent, twemoji\)"):
        pretrain.Art(art, without=pretrain.BENCHMARK_STYLES)
    command = [sys.executable, str(ROOT / "tools/pretrain.py"), "student", str(art), "unused.safetensors"]
    process = processes.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 1 and "holds styles of the benchmark" in process.stderr


@pytest.mark.slow
def test_the_embedded_pair_loads_and_has_two_architectures():
    student, teacher = (load_clip(f"emoji_{kind}") for kind in ("student", "teacher"))
    assert (student.resolution, student.embed_dim) == (teacher.resolution, teacher.embed_dim) == (64, 128)
    assert type(student.model.visual) is not type(teacher.model.visual)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    for clip in (student, teacher):
        assert clip.image_features(images).shape == clip.encode_text(clip.tokenizer(["a fox", "an owl"])).shape == (2, 128)
