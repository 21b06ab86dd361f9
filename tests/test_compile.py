"""A step is one graph of torch.compile, with the losses of the eager one, and compiled again only where that is known.

tests/graphs/run.py holds it for all learners and ways.
"""

import pytest
import torch
from support.graphs import NAMES, hold_to_eager, small_clips
from support.trainings import SMALL, build

from kdpl import students
from kdpl.clip.loading import load_clip
from kdpl.distill import CrossEntropy, Distillation
from kdpl.students.base import Shard


@pytest.mark.slow
@pytest.mark.parametrize(("learner", "way"), [("PromptSRC", "as on a card"), ("TCP", "known features")])
def test_a_step_is_one_graph_with_the_losses_of_the_eager_one(learner, way, tmp_path):
    """The teacher's pass and the frozen student's among it. The short last batch of an epoch is compiled once more."""
    hold_to_eager(learner, way, small_clips(tmp_path))


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


@pytest.mark.slow
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
