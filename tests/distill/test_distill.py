"""The distillation objective and the teacher."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kdpl.clip.loading import load_clip
from kdpl.clip.model import Clip
from kdpl.clip.preprocessing import OPENAI_MEAN, OPENAI_STD, Preprocessing
from kdpl.config.keys import ConfigError
from kdpl.distill.loss import decoupled, distillation_loss, divergences
from kdpl.distill.objective import Distillation
from kdpl.distill.selection import select_names
from kdpl.distill.teacher import Teacher
from kdpl.students import CoOp

logits = st.integers(0, 2**31).map(lambda s: 5 * torch.randn(3, 7, generator=torch.Generator().manual_seed(s)))


@settings(deadline=None)
@given(student=logits, teacher=logits)
def test_the_loss_is_the_mean_of_both_divergences(student, teacher):
    terms = distillation_loss(student, teacher)
    p, q = teacher.softmax(-1), student.softmax(-1)
    torch.testing.assert_close(terms["loss_kl_forward"], (p * (p / q).log()).sum(-1).mean(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(terms["loss_kl_reverse"], (q * (q / p).log()).sum(-1).mean(), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(terms["loss"], (terms["loss_kl_forward"] + terms["loss_kl_reverse"]) / 2)
    swapped = distillation_loss(teacher, student)
    torch.testing.assert_close(terms["loss"], swapped["loss"], atol=1e-5, rtol=1e-5)


@settings(deadline=None)
@given(student=logits, teacher=logits)
def test_dkd_and_argmax_are_those_of_their_papers(student, teacher):
    t, alpha, beta = 4.0, 1.0, 8.0
    target = F.one_hot(teacher.argmax(-1), 7).bool()
    p, q = (teacher / t).softmax(-1), (student / t).softmax(-1)
    two = [torch.stack([x[target], 1 - x[target]], -1) for x in (p, q)]
    rest = [(x / t)[~target].view(3, 6).softmax(-1) for x in (teacher, student)]
    kl = [(a * (a / b).log()).sum(-1) for a, b in (two, rest)]
    expected = t**2 * (alpha * kl[0] + beta * kl[1])
    torch.testing.assert_close(decoupled(student, teacher), expected, atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(distillation_loss(student, teacher, "dkd", t)["loss"], expected.mean(), atol=1e-4, rtol=1e-3)
    hard = -student.log_softmax(-1)[target]
    torch.testing.assert_close(divergences(student, teacher, "argmax"), hard, atol=1e-4, rtol=1e-3)


def test_a_loss_may_be_a_function_of_the_logits_of_student_and_teacher():
    s, t = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    terms = distillation_loss(s, t, lambda s, t: (s - t).square().mean(-1))
    assert torch.equal(terms["loss"], (s - t).square().mean(-1).mean())
    (found,) = torch.autograd.grad(terms["loss"], s)
    torch.testing.assert_close(found, 2 * (s - t).detach() / 12)
    for wrong in (lambda s, t: 1.0, lambda s, t: s - t):
        with pytest.raises(ValueError, match=r"expected a scalar or one value a row, \(3,\)"):
            distillation_loss(s, t, wrong)


@pytest.mark.parametrize(("loss", "temperature", "message"), [
    ("foo", 1.0, "'foo'"), ("symmetric", 0.0, "0.0, expected a number above 0"),
])  # fmt: skip
def test_a_loss_that_there_is_not_is_refused_when_the_objective_is_built(golden_clips, loss, temperature, message):
    student = CoOp(load_clip(golden_clips[0]), names=["cat", "dog"])
    with pytest.raises(ValueError, match=message):
        Distillation(student, load_clip(golden_clips[1]), ["cat", "dog"], loss=loss, temperature=temperature)


def test_the_regularisers_of_a_learner_see_the_teachers_logits(golden_clips):
    class Hinted(CoOp):
        def regularisers(self, output, frozen, names):
            return {"loss_hint": (output.logits - output.teacher_logits).square().mean()}

    student = Hinted(load_clip(golden_clips[0]), names=["cat", "dog"])
    objective = Distillation(student, load_clip(golden_clips[1]), ["cat", "dog"])
    _, terms = objective(torch.randn(2, 3, 64, 64))
    assert terms["loss_hint"] > 0 and torch.equal(terms["loss_total"], terms["loss"] + terms["loss_hint"])


def test_temperature_flattens_both_and_keeps_the_size_of_gradients():
    s, t = torch.randn(2, 5, requires_grad=True), torch.randn(2, 5)
    expected = distillation_loss(s / 3, t / 3)["loss"] * 9
    torch.testing.assert_close(distillation_loss(s, t, temperature=3.0)["loss"], expected)
    hard = distillation_loss(s, t, lambda s, t: F.cross_entropy(s, t.argmax(-1)), 3.0)["loss"]  # a function has both divided
    torch.testing.assert_close(hard, 9 * F.cross_entropy(s / 3, t.argmax(-1)))
    torch.testing.assert_close(distillation_loss(s, t, "argmax")["loss"], F.cross_entropy(s, t.argmax(-1)))


def test_selection_takes_the_names_of_highest_mean_probability():
    teacher = torch.tensor([[4.0, 0.0, 3.0, -1.0], [0.0, 1.0, 3.0, -1.0]])
    indices, probabilities = select_names(teacher, 2)
    mean = teacher.softmax(-1).mean(0)
    assert indices.tolist() == mean.argsort(descending=True)[:2].tolist() == [2, 0]
    torch.testing.assert_close(probabilities, mean[indices])
    assert len(select_names(teacher, 100)[0]) == 4


@pytest.fixture(scope="module")
def student():
    return load_clip("emoji_student")


@pytest.fixture(scope="module")
def teacher_clip():
    return load_clip("emoji_teacher")


def make_teacher(clip: Clip, **kwargs) -> Teacher:
    return Teacher(clip, ["pizza", "hot dog"], "a photo of a {}.", OPENAI_MEAN, OPENAI_STD, **kwargs)


def test_the_teacher_uses_the_students_scale_its_own_or_a_number(student, teacher_clip):
    images = torch.randn(2, 3, 64, 64)
    features = make_teacher(teacher_clip).image_features(images)
    scale = {
        s: make_teacher(teacher_clip, logit_scale=s).logits(features, student.logit_scale) for s in ("student", "own", "7.5")
    }
    torch.testing.assert_close(scale["student"] / student.logit_scale, scale["own"] / teacher_clip.logit_scale)
    torch.testing.assert_close(scale["student"] / student.logit_scale, scale["7.5"] / 7.5)
    with pytest.raises(ConfigError, match=r"TEACHER_LOGIT_SCALE is big, expected .student., .own. or a number above 0"):
        make_teacher(teacher_clip, logit_scale="big")


def test_the_teacher_sees_the_same_view_normalised_its_own_way(teacher_clip):
    pixels = torch.rand(2, 3, 64, 64)
    ours = (pixels - torch.tensor(OPENAI_MEAN).view(3, 1, 1)) / torch.tensor(OPENAI_STD).view(3, 1, 1)
    other = Clip(
        teacher_clip.model,
        teacher_clip.name,
        Preprocessing((64, 64), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.1)),
        teacher_clip.tokenizer,
    )
    expected = (pixels - torch.tensor(other.mean).view(3, 1, 1)) / torch.tensor(other.std).view(3, 1, 1)
    torch.testing.assert_close(make_teacher(other).adapt(ours), expected, atol=1e-5, rtol=1e-5)
    assert make_teacher(teacher_clip).adapt(ours) is ours


def test_teacher_text_features_are_those_of_its_sentences(teacher_clip):
    ids = teacher_clip.tokenizer(["a photo of a pizza.", "a photo of a hot dog."])
    expected = F.normalize(teacher_clip.model.encode_text(ids), dim=-1)
    torch.testing.assert_close(make_teacher(teacher_clip).text_features, expected, atol=1e-5, rtol=1e-5)


def test_logits_of_other_shapes_are_refused_and_not_broadcast():
    with pytest.raises(ValueError, match=r"\(3, 7\) and teacher logits \(1, 7\) differ"):
        distillation_loss(torch.zeros(3, 7), torch.zeros(1, 7))
