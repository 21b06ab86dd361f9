"""A test with TEST.LABELS teacher measures agreement with the teacher, and no label is read."""

import pytest
import torch
from support.trainings import build

from kdpl.distill.loss import mean_logits
from kdpl.training.results import read_results


@pytest.mark.slow
def test_agreement_is_with_the_teachers_most_probable_class_whatever_the_labels(tmp_path, capsys):
    run = build("KDPL_CoOp", tmp_path / "teacher", "TEST.SPLIT", "val", "TEST.LABELS", "teacher")
    teacher, right = run.objective.teacher, []
    for batch in run.val_loader:
        images = run.normalize(batch["img"].to(run.device))
        theirs = mean_logits(teacher.logits(teacher.image_features(images), run.student.logit_scale), 1.0).argmax(1)
        right.append(run.model_inference(images).argmax(1) == theirs)
    agreement = 100 * torch.cat(right).double().mean().item()
    for item in run.val_loader.dataset.data_source:
        object.__setattr__(item, "label", 0)
    assert run.test() == pytest.approx(agreement)
    (entry,) = read_results(tmp_path / "teacher")["results"]
    assert entry["split"] == "val by the teacher", "never taken for an accuracy"
    with pytest.raises(ValueError, match="'CoOp' has no teacher"):
        build("CoOp", tmp_path / "labels", "TEST.LABELS", "teacher")
