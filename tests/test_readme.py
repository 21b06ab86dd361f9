"""The README tells the truth."""

import os
import re
import subprocess
import sys

import torch
from support import ROOT, image_file

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_ones_own_photos_train_as_the_readme_says(tmp_path):
    (snippet,) = (block for block in re.findall(r"```python\n(.*?)```", README, re.S) if "class MyPhotos" in block)
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


def test_every_file_that_the_readme_names_is_there():
    links = re.findall(r"\]\(((?!http)[^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_every_trainer_that_the_readme_names_is_registered():
    from dassl.engine import TRAINER_REGISTRY

    import kdpl.trainers.baselines

    assert kdpl.trainers.baselines
    table = README[README.index("| trainer |") : README.index("`MODEL.BACKBONE.NAME`")]
    names = {name for name in re.findall(r"`(\w+)`", table) if name[0].isupper()}
    assert names == {n for n in TRAINER_REGISTRY.registered_names() if n in names} and len(names) == 15
