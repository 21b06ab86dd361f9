"""What is frozen stays frozen: in a training nothing moves and nothing has a gradient but the learned prompts."""

import pytest
import torch
from support import mostly_slow
from support.trainings import SMALL, build

from kdpl import students


@pytest.mark.parametrize("learner", mostly_slow([learner.__name__ for learner in students.STEPPED], "CoOp"))
def test_nothing_but_the_learned_prompts_has_a_gradient_or_moves(learner, tmp_path):
    run = build(f"KDPL_{learner}", tmp_path, *SMALL, "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 0)
    towers = {"student": run.clip, "teacher": run.objective.teacher.clip}
    before = {name: {k: v.clone() for k, v in clip.model.state_dict().items()} for name, clip in towers.items()}
    text = run.objective.teacher.text_features.clone()
    optimized = [p for group in run.optim.param_groups for p in group["params"]]
    assert {id(p) for p in optimized} == {id(p) for p in run.student.learned.parameters()}

    run.train()

    for name, clip in towers.items():
        assert not [n for n, p in clip.model.named_parameters() if p.requires_grad or p.grad is not None], name
        assert not [n for n, m in clip.model.named_modules() if m.training], name
        after = clip.model.state_dict()
        assert not [k for k, v in before[name].items() if not torch.equal(v, after[k])], name
    assert torch.equal(run.objective.teacher.text_features, text) and not text.requires_grad
    features = run.objective.teacher.image_features(torch.randn(2, 3, 64, 64, device=run.device))
    assert not features.requires_grad
    assert not run.objective.teacher.logits(features, run.student.logit_scale).requires_grad
    assert all(p.grad is not None and p.grad.any() for p in run.student.learned.parameters())
