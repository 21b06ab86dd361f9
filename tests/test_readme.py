"""The page about training and the guide to one's own photos tell the truth."""

import ast
import re

from support import ROOT, image_file, untrained_bundle

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


def test_the_page_about_training_names_every_trainer_that_is_registered():
    from dassl.engine import TRAINER_REGISTRY

    import kdpl.trainers.baselines

    assert kdpl.trainers.baselines
    table = TRAINING[TRAINING.index("| trainer |") : TRAINING.index("Each has its settings")]
    names = {name for name in re.findall(r"`(\w+)`", table) if name[0].isupper()}
    registered = {n: TRAINER_REGISTRY.get(n).__module__ for n in TRAINER_REGISTRY.registered_names()}
    assert names == {name for name, module in registered.items() if module.startswith("kdpl.trainers.")}
