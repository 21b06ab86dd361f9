"""A training step as one graph of torch.compile beside the eager step: tests/test_compile.py takes some learners and ways,
tests/graphs/run.py all of them."""

from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from kdpl import students
from kdpl.clip import prompt_layout
from kdpl.clip.loading import load_clip
from kdpl.distill import CrossEntropy, Distillation
from support import save_clip
from support.trainings import build_student

NAMES = ["pizza", "hot dog", "ice cream cone"]
LEARNERS = tuple(learner.__name__ for learner in students.STEPPED if not learner.text_depends_on_images)
WAYS = ("images", "as on a card", "known features", "labels", "a ResNet as teacher", "class-specific", "inductor")
SIZES = (4, 4, 3, 4, 3)  # of the batches: the short last one of an epoch is compiled once more
GRAPHS = [1, 1, 2, 2, 2]


class Clips(NamedTuple):
    student: str
    teacher: str
    resnet: str


def small_clips(folder: Path) -> Clips:
    """Return names of a student of three layers, the first, one between and the last, and of teachers of one."""
    rest, one = (77, 49408, 64, 1), (1, 1, 1, 1)
    return Clips(
        save_clip(folder / "student.safetensors", 1, 64, 64, 3, 64, 32, *rest, 3),
        save_clip(folder / "teacher.safetensors", 2, 64, 64, 1, 64, 32, *rest, 1),
        save_clip(folder / "resnet.safetensors", 3, 64, 64, one, 8, None, *rest, 1),
    )


def hold_to_eager(learner: str, way: str, clips: Clips) -> None:
    """Assert that steps are one graph for each size of a batch, with the losses and gradients of eager ones."""
    torch._dynamo.reset()
    padded = patch.object(prompt_layout, "on_cpu", lambda rows: False) if way == "as on a card" else nullcontext()
    with padded, patch.object(students.promptsrc, "FROZEN_TEMPLATES", 3):
        objective = an_objective(learner, way, clips)
        batches = [a_batch(objective, way, size) for size in SIZES]
        eager = [a_step(objective, batch) for batch in batches]
        counter = CompileCounterWithBackend("inductor" if way == "inductor" else "aot_eager")
        objective.compile(counter)
        graphs, compiled = [], []
        for batch in batches:
            compiled.append(a_step(objective, batch))
            graphs.append(counter.frame_count)
    assert graphs == GRAPHS, f"graphs after each step: {graphs}"
    bound = 1e-5 if way == "inductor" else 1e-6  # it fuses sums, which are then rounded elsewhere
    for (ours, gradients), (theirs, expected) in zip(compiled, eager, strict=True):
        assert abs(ours - theirs) <= bound * abs(theirs), f"{ours} compiled, {theirs} eager"
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


def an_objective(learner: str, way: str, clips: Clips) -> CrossEntropy | Distillation:
    clip = load_clip(clips.student)
    student = students.CoOp(clip, {"CSC": True}, NAMES) if way == "class-specific" else build_student(learner, clip, NAMES)
    if way == "labels":
        return CrossEntropy(student, NAMES)
    return Distillation(student, load_clip(clips.resnet if way == "a ResNet as teacher" else clips.teacher), NAMES)


def a_batch(objective: CrossEntropy | Distillation, way: str, size: int) -> dict[str, Tensor | None]:
    """Return the arguments of a step: images, with labels for the baselines; or what is known of them."""
    images = torch.randn(size, 3, 64, 64, generator=torch.Generator().manual_seed(size))
    if way == "labels":
        return {"images": images, "labels": torch.arange(size) % len(NAMES)}
    if way != "known features":
        return {"images": images}
    student = objective.student
    frozen = student.image_features_are_frozen or student.reads_frozen_image_features
    return {
        "images": None if student.image_features_are_frozen else images,
        "teacher_features": objective.teacher.image_features(images),
        "frozen_features": student.frozen_image_features(images) if frozen else None,
    }


def a_step(objective: CrossEntropy | Distillation, batch: dict[str, Tensor | None]) -> tuple[float, list[Tensor]]:
    """Return the loss of a batch and its gradients."""
    objective.student.zero_grad()
    loss, terms = objective(**batch)
    loss.backward()
    assert torch.equal(terms["loss_total" if "loss_total" in terms else "loss"], loss.detach())
    return loss.item(), [p.grad.clone() for p in objective.student.learned.parameters()]
