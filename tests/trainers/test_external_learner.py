"""The learner of docs/new_student.md in a file named by `--learner`: its whole life in real processes."""

import json
import os
import re
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from support import ROOT, emoji_args, image_file, processes, run_train

from kdpl import cache, train
from kdpl.common import exits

GUIDE = (ROOT / "docs/new_student.md").read_text(encoding="utf-8")
(LEARNER,) = (block for block in re.findall(r"```python\n(.*?)```", GUIDE, re.S) if "@prompt_learner" in block)
TINY = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 3, "TRAINER.MYLEARNER.W", 0.5)
TRAINER = "KDPL_MyLearner"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the file of the learner."""
    folder = tmp_path_factory.mktemp("beside")
    (folder / "my_learner.py").write_text(LEARNER)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    """The output folder of an uninterrupted training."""
    run_train("--learner", "my_learner.py", *emoji_args(TRAINER, folder / "out"), *TINY, cwd=folder)
    return folder / "out"


def prompts(output, epoch=3):
    path = output / "prompt_learner" / f"model.pth.tar-{epoch}"
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]["ctx"]


@pytest.mark.slow
def test_it_is_resumed_bit_identical(folder, trained):
    output = folder / "resumed"
    args = ["--learner", "my_learner.py", *emoji_args(TRAINER, output), *TINY, "TRAIN.CHECKPOINT_FREQ", 1]
    run_train(*args, cwd=folder)
    for path in (output / "prompt_learner").iterdir():  # as a run that was killed in its second epoch leaves them
        if path.name in ("model.pth.tar-2", "model.pth.tar-3"):
            path.unlink()
    (output / "prompt_learner" / "checkpoint").write_text("model.pth.tar-1\n")
    assert "(epoch=1)" in run_train(*args, cwd=folder).stdout
    assert torch.equal(prompts(output), prompts(trained))
    (folder / "changed.py").write_text(LEARNER.replace(".pow(2)", ".abs()"))
    process = run_train("--learner", "changed.py", *args[2:], cwd=folder, check=False)
    assert process.returncode == exits.BAD_INPUT and "learner's file: " in process.stderr


@pytest.mark.slow
def test_its_bundle_is_loaded_with_the_flag_and_refused_without(folder, trained):
    image_file(folder / "photo.png")

    def predict(*flags):
        command = [sys.executable, str(ROOT / "predict.py"), "--prompts", str(trained), *flags, "photo.png"]
        return processes.run(command, capture_output=True, text=True, cwd=folder, env=os.environ, timeout=200, check=False)

    with safe_open(trained / "prompts.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("ctx"), prompts(trained))
    process = predict("--learner", "my_learner.py")
    assert process.returncode == 0 and process.stdout.startswith("photo.png\t"), process.stderr
    process = predict()
    assert process.returncode == exits.BAD_INPUT
    assert "variant 'MyLearner' is not one of" in process.stderr and "--learner" in process.stderr
    load = f"print(type(kdpl.load({str(trained)!r}).student).__name__)"
    code = f"import sys; sys.path.insert(0, '.'); import my_learner, kdpl; {load}"
    command = [sys.executable, "-c", code]
    printed = processes.run(command, capture_output=True, text=True, cwd=folder, timeout=200, check=True).stdout
    assert printed.strip() == "MyLearner", "importing its module does as well"


BROKEN = {
    "raises": ("x = 1\nraise RuntimeError('no luck')", r"is not a prompt learner in line 2 (RuntimeError: no luck)"),
    "bare": ("from kdpl.students import CoOp\nclass Bare(CoOp):\n    pass", "@kdpl.trainers.prompt_learner"),
    "name": (
        "from kdpl.students import CoOp as Parent\nfrom kdpl.trainers import prompt_learner\n"
        "@prompt_learner\nclass CoOp(Parent):\n    pass",
        "A prompt learner 'CoOp' exists already",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_defines_no_learner_is_refused_in_one_line(case, tmp_path, capsys):
    text, message = BROKEN[case]
    path = tmp_path / f"{case}.py"
    path.write_text(textwrap.dedent(text))
    args = ["--learner", str(path), *emoji_args("KDPL_CoOp", tmp_path / "out")]
    for main in (train.main, cache.main):
        assert main(args) == exits.BAD_INPUT
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert line.startswith(f"error: --learner '{path}' ") and message in line
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_it_is_evaluated_and_has_a_supervised_baseline(folder, trained):
    args = ["--eval-only", "--model-dir", trained, *emoji_args(TRAINER, folder / "new"), *TINY]
    run_train("--learner", "my_learner.py", *args, "DATASET.SUBSAMPLE_CLASSES", "new", cwd=folder)
    (result,) = json.loads((folder / "new" / "results.json").read_text())["results"]
    assert (result["classes"], result["num_classes"]) == ("new", 30)
    run_train("--learner", "my_learner.py", *emoji_args("MyLearner", folder / "supervised"), *TINY, cwd=folder)
    assert json.loads((folder / "supervised" / "results.json").read_text())["teacher"] is None
