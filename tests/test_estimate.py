"""The calculator counts what the code does, and its arithmetic is that of its table."""

import pytest
import torch
from support import LEARNERS, ROOT, config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdpl import flops, students
from kdpl.clips import load_clip
from kdpl.distill import distillation_loss
from kdpl.teacher import Teacher

NAMES = ["apple", "green apple", "banana", "loaf of bread", "cup of tea with a slice of lemon"]


def settings(learner, tmp_path, **changes):
    cfg = config(f"KDPL_{learner}", "emoji_food", tmp_path)
    values = {"student": "emoji_student", "teacher": "emoji_teacher", "names": NAMES, "batch": 3, **changes}
    return flops.Settings(getattr(students, learner), cfg.TRAINER[learner.upper()], **values)


def real_step(s):
    """Return what takes the same step on real tensors, as the trainers do."""
    clip, teacher = load_clip(s.student), load_clip(s.teacher)
    clip.text.max_rows = s.max_text_rows
    student = s.learner.build(clip, s.options, s.names)
    prepared = student.prepare(s.names)
    if s.learner.node == "PROMPTSRC":
        student.frozen_text_features(s.names)  # computed once, before the first step
    teacher = Teacher(teacher, list(s.names), "a photo of a {}.", clip.mean, clip.std)

    def step():
        student.zero_grad()
        images = torch.randn(s.batch, 3, clip.resolution, clip.resolution)
        target = teacher.logits(teacher.image_features(images), student.logit_scale)
        frozen = student.frozen_image_features(images) if student.reads_frozen_image_features else None
        output = student(images, prepared, frozen=frozen)
        loss = distillation_loss(output.logits, target)["loss"]
        (loss + sum(student.regularisers(output, frozen, s.names).values())).backward()

    return step


@pytest.mark.parametrize("learner", LEARNERS)
def test_a_step_without_numbers_counts_what_pytorch_counts_in_a_real_one(learner, tmp_path):
    s = settings(learner, tmp_path)
    step = real_step(s)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # attention as products it can count
        step()
    cost = flops.count_step(s)
    assert cost.tally.flops() == pytest.approx(counter.get_total_flops(), rel=0.02)
    parts = {part for part in flops.PARTS if cost.tally.flops(part)}
    assert parts == {"teacher image", "student image", "loss"} | ({"text"} if learner != "VPT" else set())


@pytest.mark.parametrize("learner", ["CoCoOp", "PromptSRC"])
def test_the_memory_of_a_step_without_numbers_is_that_of_a_real_one(learner, tmp_path):
    s = settings(learner, tmp_path)
    step = real_step(s)
    with flops.Tally() as tally:
        step()
    assert flops.count_step(s).tally.peak == pytest.approx(tally.peak, rel=0.03)
    del step
    assert tally.alive < 0.05 * tally.peak


def test_tokens_in_flight_are_bounded_at_the_price_of_a_second_forward_pass(tmp_path):
    free, bound = (flops.count_step(settings("CoCoOp", tmp_path, batch=8, max_text_rows=rows)) for rows in (0, 50))
    assert bound.tally.peak < free.tally.peak
    assert 1.2 < bound.tally.flops("text") / free.tally.flops("text") < 1.6


def test_known_features_cost_nothing_again(tmp_path):
    fresh, warm = (flops.count_step(settings("CoOp", tmp_path, cached=cached)) for cached in (False, True))
    assert fresh.tally.flops("text") == warm.tally.flops("text") > 0
    assert fresh.tally.flops("teacher image") > 100 * warm.tally.flops("teacher image")
    assert warm.tally.flops("student image") == 0 < fresh.tally.flops("student image")
    prompted = flops.count_step(settings("VPT", tmp_path, cached=True))
    assert prompted.tally.flops("student image") > 0, "what is learned is never known"


def test_published_sizes_are_counted_without_loading_them(tmp_path):
    cfg = config("KDPL_CoOp", "", tmp_path, config_file=f"{ROOT}/configs/trainers/KDPL_CoOp/vit_b32_ctxv1.yaml")
    s = flops.Settings(students.CoOp, cfg.TRAINER.COOP, "RN50", "ViT-H-14-quickgelu", NAMES, 2, "fp32", "fp32", "fp16")
    cost = flops.count_step(s)
    # 24 w^2 + 4 L w a token and layer, the last layer for one of the 257; patches of 14 pixels.
    w, tokens, layers = 1280, 257, 32
    whole = (layers - 1) * tokens * (24 * w**2 + 4 * tokens * w) + tokens * 4 * w**2 + 20 * w**2
    assert cost.tally.flops("teacher image") == pytest.approx(2 * (whole + 256 * 2 * 3 * 14**2 * w), rel=0.01)
    assert cost.teacher_bytes == pytest.approx(2 * 986e6, rel=0.06), "986 million parameters, almost all halved"
    assert cost.tally.flops("student image") == pytest.approx(2 * 12.2e9, rel=0.1), "RN50 with attention pooling"
