"""A few labels beside the distillation: its loss by an independent computation, and labels that are refused."""

import pytest
import torch
import torch.nn.functional as F

from kdpl.clip import load_clip
from kdpl.distill import Distillation
from kdpl.distill.objective import Labelled
from kdpl.distill.teacher import Teacher
from kdpl.students import VPT, CoCoOp, CoOp, TaskRes

NAMES = ["bread", "cake", "cookie", "egg", "pizza"]


@pytest.fixture(scope="module")
def parts():
    """Student and teacher, features of a batch by both, and of three labelled images."""
    torch.manual_seed(0)
    clip, teacher = load_clip("emoji_student"), load_clip("emoji_teacher")
    frozen, seen, few = (F.normalize(torch.randn(n, c.embed_dim), dim=-1) for n, c in ((8, clip), (8, teacher), (3, clip)))
    return clip, Teacher(teacher, NAMES, "a photo of a {}.", clip.mean, clip.std), frozen, seen, few


@pytest.mark.parametrize(
    "learner", [TaskRes, lambda clip, o, n: CoOp(clip, {"CSC": True, "N_CTX": 4}, n)], ids=["TaskRes", "CSC"]
)
def test_the_loss_is_the_divergence_and_the_weighted_cross_entropy_of_the_labelled_images(learner, parts):
    clip, teacher, frozen, seen, few = parts
    student, labels = learner(clip, {}, NAMES), torch.tensor([4, 0, 4])
    for p in student.learned.parameters():
        p.data += 0.1 * torch.randn_like(p)
    objective = Distillation(student, teacher, NAMES, labelled=Labelled(few, labels, 0.7))
    loss, terms = objective(None, teacher_features=seen, frozen_features=frozen)
    loss.backward()
    found = [p.grad.clone() for p in student.learned.parameters()]
    student.zero_grad()

    g = student.text_features(student.prepare(NAMES))
    s = clip.logit_scale
    a, b = (s * seen @ teacher.text_features.T).log_softmax(1), (s * frozen @ g.T).log_softmax(1)
    symmetric = ((a.exp() - b.exp()) * (a - b)).sum(1).mean() / 2
    p = (s * few @ g.T).softmax(1)
    expected = symmetric - 0.7 * (p[0, 4].log() + p[1, 0].log() + p[2, 4].log()) / 3
    expected.backward()
    assert torch.allclose(loss, expected, atol=1e-5, rtol=1e-5) and torch.allclose(terms["loss_total"], expected, rtol=1e-5)
    assert torch.allclose(terms["loss"], symmetric, atol=1e-5, rtol=1e-5)
    for mine, parameter in zip(found, student.learned.parameters(), strict=True):
        assert torch.allclose(mine, parameter.grad, atol=1e-5, rtol=1e-4)


def test_other_labels_features_or_weights_are_another_run(parts):
    few = parts[-1]
    digests = {
        Labelled(f, torch.tensor(labels), w).digest
        for f, labels, w in ((few, [0, 1, 2], 1.0), (few, [0, 2, 1], 1.0), (few, [0, 1, 2], 0.5), (few.flip(0), [0, 1, 2], 1.0))
    }
    assert len(digests) == 4 and all(digest.startswith("3 (") for digest in digests)


def test_labels_that_cannot_be_used_are_refused(parts):
    clip, teacher, _, _, few = parts
    ok, context = torch.tensor([0, 1, 2]), {"CTX_INIT": "a photo of a"}
    for student, labels, options, message in (
        (VPT(clip, {}, NAMES), ok, {}, "beside VPT: .*TaskRes or CoOp"),
        (CoCoOp(clip, context, NAMES), ok, {}, "beside CoCoOp: "),
        (CoOp(clip, context), ok, {"k_max": 3}, "beside CoOp, class-agnostic: "),
        (TaskRes(clip, {}, NAMES), torch.tensor([0, 1, 5]), {}, r"labels \[0, 1, 5\], .* list of 5 class names"),
        (TaskRes(clip, {}, NAMES), ok[:2], {}, r"3 labelled images have the labels \[0, 1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Distillation(student, teacher, NAMES, labelled=Labelled(few, labels), **options)
