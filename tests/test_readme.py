"""The README, the page about training and the guide to one's own photos tell the truth."""

import ast
import os
import re
import subprocess
import sys

import pytest
import torch
from support import ROOT, image_file, untrained_bundle

import kdpl

TRAINING = (ROOT / "docs/training.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "docs/your_photos.md").read_text(encoding="utf-8")


def python_blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.S)


def test_five_lines_of_python_predict_as_the_guide_says(tmp_path, monkeypatch, capsys):
    untrained_bundle(tmp_path / "OUT", "CoOp", ["cat", "dog"])
    for name in ("one.jpg", "two.png"):
        image_file(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    lines = next(block for block in python_blocks(GUIDE) if "kdpl.load" in block)
    assert len(lines.split("\n\n")[1].splitlines()) <= 5
    exec(lines, {})
    printed = ast.literal_eval(capsys.readouterr().out)
    assert len(printed) == 2 and set(printed) <= {"giraffe", "lion", "zebra"}


@pytest.mark.slow
def test_an_exported_classifier_predicts_without_this_package_as_the_guide_says(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime")
    untrained_bundle(tmp_path / "OUT", "CoOp", ["cat", "dog"])
    image_file(tmp_path / "one.jpg", 90)
    monkeypatch.chdir(tmp_path)
    export, serve = (block for block in python_blocks(GUIDE) if "onnx" in block)
    exec(export, {})
    assert "kdpl" not in serve and "torch" not in serve
    scope = {}
    exec(serve, scope)
    assert capsys.readouterr().out.strip() in ("cat", "dog")
    expected = kdpl.load("OUT")("one.jpg")
    assert torch.allclose(torch.from_numpy(scope["probabilities"]), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_a_data_set_of_ones_own_trains_as_the_guide_says(tmp_path):
    (snippet,) = (block for block in python_blocks(GUIDE) if "class MyPhotos" in block)
    (tmp_path / "my_data.py").write_text(snippet)
    (tmp_path / "train.py").write_text("import my_data\n" + (ROOT / "train.py").read_text(encoding="utf-8"))
    for i in range(5):
        image_file(tmp_path / "photos" / f"{i}.jpg", seed=i)
    process = subprocess.run(
        [
            sys.executable, "train.py", "--root", "photos", "--trainer", "KDPL_CoOp", "--seed", "1", "--output-dir", "out",
            "--config-file", f"{ROOT}/configs/trainers/KDPL_CoOp/emoji.yaml",
            "DATASET.NAME", "MyPhotos", "TEST.NO_TEST", "True", "OPTIM.MAX_EPOCH", "2",
        ],
        cwd=tmp_path, capture_output=True, text=True, check=False, env=os.environ,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    state = torch.load(tmp_path / "out" / "prompt_learner" / "model.pth.tar-2", weights_only=True)
    assert state["state_dict"]["ctx"].shape == (4, 128)


def test_the_page_about_training_names_every_trainer_that_is_registered():
    from dassl.engine import TRAINER_REGISTRY

    import kdpl.trainers.baselines

    assert kdpl.trainers.baselines
    table = TRAINING[TRAINING.index("| trainer |") : TRAINING.index("Each has its settings")]
    names = {name for name in re.findall(r"`(\w+)`", table) if name[0].isupper()}
    registered = {n: TRAINER_REGISTRY.get(n).__module__ for n in TRAINER_REGISTRY.registered_names()}
    assert names == {name for name, module in registered.items() if module.startswith("kdpl.trainers.")}
