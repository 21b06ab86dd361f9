"""A step is one graph of torch.compile, with the losses of the eager one, and compiled again only where that is known."""

import pytest
import torch
from support import save_clip
from support.trainings import SMALL, build, build_student
from torch._dynamo.testing import CompileCounterWithBackend

from kdpl import students
from kdpl.clip import prompt_layout
from kdpl.clip.blocks import PaddedAttention
from kdpl.clip.loading import load_clip
from kdpl.distill import CrossEntropy, Distillation
from kdpl.students.sharding import Shard

NAMES = ["pizza", "hot dog", "ice cream cone"]


def batches(*sizes):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 3, 64, 64, generator=generator) for size in sizes]


def steps(objective, images):
    """Return losses and gradients of steps on batches."""
    found = []
    for batch in images:
        objective.student.zero_grad()
        loss, terms = objective(batch)
        loss.backward()
        assert torch.equal(terms["loss_total" if "loss_total" in terms else "loss"], loss.detach())
        found.append((loss.item(), [p.grad.clone() for p in objective.student.learned.parameters()]))
    return found


WHOLE = ["CoOp", "PromptSRC"]


HOW = ["as on a card", "a ResNet as teacher"]


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Names of a student of four layers and a teacher of one, which are compiled in seconds."""
    folder, sizes = tmp_path_factory.mktemp("clips"), (64, 32, 77, 49408, 64, 1)
    student = save_clip(folder / "student.safetensors", 1, 64, 64, 4, *sizes, 4)
    return student, save_clip(folder / "teacher.safetensors", 2, 64, 64, 1, *sizes, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("learner", "how"), [*((name, "") for name in WHOLE), *(("CoOp", how) for how in HOW)])
def test_a_step_is_one_graph_with_the_losses_of_the_eager_one(learner, how, clips, monkeypatch):
    """The teacher's pass and the frozen student's among it. The short last batch of an epoch is compiled once more."""
    monkeypatch.setattr(students.promptsrc, "FROZEN_TEMPLATES", 3)
    torch._dynamo.reset()
    clip, teacher, images = *map(load_clip, clips), batches(4, 4, 3, 4, 3)
    if how == "as on a card":
        monkeypatch.setattr(prompt_layout, "packed_attention", PaddedAttention)
    specific = students.CoOp(clip, {"CSC": True}, NAMES) if how == "class-specific" else None
    student = specific or build_student(learner, clip, NAMES)
    objective = Distillation(student, load_clip("emoji_teacher") if how.endswith("teacher") else teacher, NAMES)
    eager = steps(objective, images)
    counter = CompileCounterWithBackend("aot_eager")
    objective.compile(counter)
    graphs, compiled = [], []
    for batch in images:
        compiled += steps(objective, [batch])
        graphs.append(counter.frame_count)
    assert graphs == [1, 1, 2, 2, 2]
    for (ours, gradients), (theirs, expected) in zip(compiled, eager, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
        for a, b in zip(gradients, expected, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5 * float(b.abs().max()), rtol=1e-4)


def test_what_cannot_be_one_graph_is_refused_with_the_reason():
    clip = load_clip("emoji_student")
    shared = CrossEntropy(students.CoOp(clip, {}, NAMES), NAMES)
    shared.prepared = Shard(shared.prepared, [2, 1])
    for objective, why in (
        (CrossEntropy(students.CoCoOp(clip, {}, NAMES), NAMES), "every image has prompts of its own"),
        (shared, "processes share the class names"),
        (
            Distillation(students.CoOp(clip), load_clip("emoji_teacher"), NAMES, k_max=2),
            "the names are selected for each batch",
        ),
    ):
        with pytest.raises(ValueError, match=f"cannot be one graph: {why}"):
            objective.compile()


@pytest.mark.parametrize("learner", ["CoOp", "CoCoOp"])
def test_a_trainer_compiles_the_step_or_says_why_not(learner, tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda call, **options: asked.append((call, options)) or call)
    run = build(f"KDPL_{learner}", tmp_path, *SMALL, "DATALOADER.NUM_WORKERS", 0, "TRAINER.KDPL.COMPILE", True)
    run.load_for_training()
    whole = [options for call, options in asked if call == run.objective._step]
    assert len(whole) == (learner == "CoOp") and all(options["fullgraph"] for options in whole)
    said = "the step is not: every image has prompts of its own" in capsys.readouterr().out
    assert said == (learner == "CoCoOp")
