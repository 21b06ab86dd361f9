"""The learning rate of every epoch, and the scheduler that sets it."""

import io
import math

import pytest
import torch
from yacs.config import CfgNode

from kdpl.training.schedule import EpochSchedule, rate

PUBLISHED = {
    "LR": 0.002,
    "LR_SCHEDULER": "cosine",
    "STEPSIZE": (-1,),
    "GAMMA": 0.1,
    "MAX_EPOCH": 50,
    "WARMUP_EPOCH": 1,
    "WARMUP_TYPE": "constant",
    "WARMUP_CONS_LR": 1e-5,
    "WARMUP_MIN_LR": 1e-5,
    "WARMUP_RECOUNT": True,
}


def optim(**changes) -> CfgNode:
    return CfgNode(PUBLISHED | changes)


def optimizer(*base_rates: float) -> torch.optim.SGD:
    return torch.optim.SGD([{"params": [torch.zeros(1, requires_grad=True)], "lr": lr} for lr in base_rates], lr=1.0)


def rates_in_use(schedule, sgd, epochs: int) -> list[list[float]]:
    seen = []
    for _ in range(epochs):
        seen.append([group["lr"] for group in sgd.param_groups])
        sgd.step()
        schedule.step()
    return seen


def test_the_published_schedule_is_one_warm_up_epoch_and_a_cosine_from_the_base_rate():
    expected = [1e-5] + [0.002 * (1 + math.cos(math.pi * (e - 1) / 50)) / 2 for e in range(1, 50)]
    assert [rate(e, optim(), 0.002) for e in range(50)] == pytest.approx(expected, rel=1e-12)


def test_linear_warm_up_rises_to_the_base_rate_and_counts_as_epochs_unless_recounted():
    cfg = optim(WARMUP_EPOCH=4, WARMUP_TYPE="linear", WARMUP_MIN_LR=1e-6)
    assert [rate(e, cfg, cfg.LR) for e in range(5)] == pytest.approx([1e-6, 0.0005, 0.001, 0.0015, 0.002])
    cfg = optim(WARMUP_EPOCH=5, WARMUP_RECOUNT=False)
    assert rate(5, cfg, cfg.LR) == pytest.approx(0.002 * (1 + math.cos(math.pi * 5 / 50)) / 2)
    assert rate(5, optim(WARMUP_EPOCH=5), 0.002) == 0.002


@pytest.mark.parametrize(
    ("kind", "stepsize", "expected"),
    [
        ("single_step", (10,), {0: 2e-3, 9: 2e-3, 10: 2e-4, 19: 2e-4, 20: 2e-5}),
        ("single_step", (-1,), {0: 2e-3, 49: 2e-3, 50: 2e-4}),  # below one it is the whole training
        ("multi_step", (10, 30), {9: 2e-3, 10: 2e-4, 29: 2e-4, 30: 2e-5}),
    ],
)
def test_steps_fall_where_stepsize_says(kind, stepsize, expected):
    cfg = optim(LR_SCHEDULER=kind, STEPSIZE=stepsize, WARMUP_EPOCH=-1)
    assert [rate(epoch, cfg, cfg.LR) for epoch in expected] == pytest.approx(list(expected.values()))


def test_the_scheduler_sets_the_rates_of_every_group_and_a_restored_one_goes_on_where_it_stopped():
    sgd = optimizer(0.002, 0.0002)
    schedule = EpochSchedule(sgd, optim())
    expected = [[rate(epoch, optim(), 0.002), rate(epoch, optim(), 0.0002)] for epoch in range(7)]
    assert rates_in_use(schedule, sgd, 7) == expected and expected[0] == [1e-5, 1e-5]
    file = io.BytesIO()
    torch.save({"optimizer": sgd.state_dict(), "scheduler": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)

    resumed = optimizer(0.002, 0.0002)
    resumed_schedule = EpochSchedule(resumed, optim())
    resumed.load_state_dict(saved["optimizer"])
    resumed_schedule.load_state_dict(saved["scheduler"])
    assert rates_in_use(resumed_schedule, resumed, 43) == rates_in_use(schedule, sgd, 43)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"LR_SCHEDULER": "cosin"}, "OPTIM.LR_SCHEDULER 'cosin' .* Did you mean 'cosine'"),
        ({"WARMUP_EPOCH": 51}, "OPTIM.MAX_EPOCH is 50, expected .* the 51 of OPTIM.WARMUP_EPOCH"),
        ({"STEPSIZE": ()}, "OPTIM.STEPSIZE"),
    ],
)
def test_an_impossible_schedule_is_refused_when_it_is_built(changes, message):
    with pytest.raises(ValueError, match=message):
        EpochSchedule(optimizer(0.002), optim(**changes))
