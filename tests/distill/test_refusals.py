"""What `Distillation` and learners refuse in plain PyTorch, and what a plain loop is told."""

import pytest
import torch

from kdpl import students
from kdpl.clip import load_clip
from kdpl.distill import Distillation

NAMES = ["cat", "dog", "sea turtle"]


@pytest.fixture(scope="module")
def clips():
    return load_clip("emoji_student"), load_clip("emoji_teacher")


def test_a_student_with_nothing_to_learn_is_refused(clips):
    student = students.CoOp(clips[0])
    student.learned.requires_grad_(False)
    with pytest.raises(ValueError, match="CoOp has no learned parameter"):
        Distillation(student, clips[1], NAMES)


@pytest.mark.parametrize("which", ["teacher_features", "frozen_features"])
def test_features_that_are_not_of_length_one_are_refused(clips, which):
    objective, images = Distillation(students.CoOp(clips[0]), clips[1], NAMES), torch.randn(2, 3, 64, 64)
    given = {
        "teacher_features": objective.teacher.image_features(images),
        "frozen_features": clips[0].frozen_image_features(images),
    }
    with pytest.raises(ValueError, match="lengths from 3 to 3, expected 1"):
        objective(**{**given, which: 3 * given[which]})
    loss, _ = Distillation(students.CoOp(clips[0]), clips[1], NAMES)(**given)
    assert loss.isfinite()


def plain_loop(clips, images, epochs, ends):
    torch.manual_seed(0)
    depths = {"PROMPT_DEPTH_VISION": 2, "PROMPT_DEPTH_TEXT": 2, "GPA_MEAN": 1}
    student = students.PromptSRC(clips[0], depths)
    objective = Distillation(student, clips[1], NAMES)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    ends_of_epochs = []
    for epoch in range(epochs):
        loss, _ = objective(images)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ends_of_epochs.append({k: v.clone() for k, v in student.learned.state_dict().items()})
        if ends:
            student.end_epoch(epoch, epochs)
    return student, ends_of_epochs


def test_a_plain_loop_of_promptsrc_averages_or_says_what_is_missing(clips, capsys):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    student, ends = plain_loop(clips, images, 2, ends=True)
    weights = students.promptsrc.gaussian_weights(2, 1, 1)
    for name, value in student.learned.state_dict().items():
        torch.testing.assert_close(value, weights[0] * ends[0][name] + weights[1] * ends[1][name])
    with torch.no_grad():
        student(images, student.prepare(NAMES))
    assert "Warning" not in capsys.readouterr().out
    student, _ = plain_loop(clips, images, 2, ends=False)
    with torch.no_grad():
        student(images, student.prepare(NAMES))
    assert "call student.end_epoch(epoch, epochs) after each epoch" in capsys.readouterr().out
