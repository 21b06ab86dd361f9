"""The columns of both sides of the objective are the same names, in the same order."""

import pytest
import torch
from support import ROOT, SHARED, mostly_slow
from support.trainings import build_student

from kdpl.clip.loading import load_clip
from kdpl.distill.loss import distillation_loss
from kdpl.distill.objective import Distillation
from kdpl.distill.selection import select_names
from kdpl.text.vocabulary import load_vocabulary


@pytest.mark.parametrize("learner", mostly_slow(SHARED, "CoOp", "CoCoOp"))
def test_the_students_names_are_the_columns_of_the_teachers_logits(learner):
    """The same loss, with the student's column of every selected name looked up by that name."""
    names = load_vocabulary(str(ROOT / "datasets/embedded/vocabulary.txt"))[::60]
    student, teacher = build_student(learner, load_clip("emoji_student")), load_clip("emoji_teacher")
    objective = Distillation(student, teacher, names, k_max=7)
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    _, terms = objective(images)

    target = objective.teacher.logits(objective.teacher.image_features(images), student.logit_scale)
    chosen, _ = select_names(target, 7)
    assert chosen.tolist() != sorted(chosen.tolist()), "else a sorted list would pass"
    own = torch.stack([student(images, student.prepare([names[i], "x"])).logits[:, 0] for i in chosen.tolist()], dim=1)
    expected = distillation_loss(own, target[:, chosen])
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, atol=1e-4, rtol=1e-4)
