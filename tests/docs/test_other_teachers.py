"""The examples of docs/other_teachers.md, run as printed."""

import re

import torch
from support import ROOT

from kdpl.clip.loading import load_clip
from kdpl.distill.given import read_probabilities
from kdpl.distill.objective import Distillation
from kdpl.students import CoOp


def test_the_examples_write_tables_and_train(golden_clips, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names, paths = ["cat", "dog"], ["photos/1.jpg", "photos/2.jpg"]
    (tmp_path / "names.txt").write_text("\n".join(names))
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/other_teachers.md").read_text(encoding="utf-8"), re.S)
    api, ensemble, classifier, loss = blocks
    here = {"answers": {paths[0]: {"cat": 0.8, "dog": 0.1}, paths[1]: {}}, "paths": paths, "Distillation": Distillation}
    exec(api, here)
    table = read_probabilities("answers.csv")
    torch.testing.assert_close(table.logits(paths).softmax(1)[1], torch.tensor([0.5, 0.5]))
    here |= {"first": torch.tensor([[0.9, 0.1], [0.5, 0.5]]).numpy(), "second": torch.tensor([[0.1, 0.9], [0.5, 0.5]]).numpy()}
    exec(ensemble, here)
    torch.testing.assert_close(read_probabilities("answers.npz").logits(paths).softmax(1)[0], torch.tensor([0.66, 0.34]))
    student, images = CoOp(load_clip(golden_clips[0]), names=names), torch.randn(2, 3, 64, 64)
    network = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    here |= {"student": student, "images": images, "network": network, "teacher": table}
    exec(classifier, here)
    here["loss"].backward()
    assert student.learned.ctx.grad.abs().sum() > 0
    exec(loss, here)
    assert here["objective"](images, teacher_features=paths)[0] > 0
