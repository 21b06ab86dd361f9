"""Optimizers, the scheduler's place, and accuracy, in the bundled engine."""

import fallback_pieces  # noqa: F401  (before dassl, which it makes importable)
import pytest
import torch
from torch import nn

# isort: split
from dassl.config import get_cfg_default
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer


def optim(*overrides):
    cfg = get_cfg_default()
    cfg.merge_from_list([f"OPTIM.{x}" if i % 2 == 0 else x for i, x in enumerate(overrides)])
    return cfg.OPTIM


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.head = nn.Linear(2, 1)
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("counter", torch.zeros(1))

    def forward(self, x):
        return self.scale * self.head(self.backbone(x))


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"])
def test_every_optimizer_moves_all_parameters_and_lowers_the_loss(name):
    torch.manual_seed(0)
    model = TwoParts()
    before = {key: p.clone() for key, p in model.named_parameters()}
    optimizer = build_optimizer(model, optim("NAME", name, "LR", 0.01))
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = (model(torch.ones(4, 2)) - 3).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(p, before[key]) for key, p in model.named_parameters())


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match=r"OPTIM\.NAME 'SDG' .* 'sgd'"):
        build_optimizer(TwoParts(), optim("NAME", "SDG"))
    with pytest.raises(ValueError, match=r"STAGED_LR is True.*need an installed Dassl"):
        build_optimizer(TwoParts(), optim("STAGED_LR", True))


def test_accuracy_counts_labels_among_the_highest_logits():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    labels = torch.tensor([0, 1, 2, 0])
    top1, top2, top3 = compute_accuracy(logits, labels, topk=(1, 2, 3))
    assert (top1.item(), top2.item(), top3.item()) == (50.0, 75.0, 100.0)
    assert compute_accuracy((logits, "features"), labels)[0].shape == (1,)
