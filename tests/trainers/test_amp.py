"""Under amp no step is lost: a backward pass whose scaled gradients overflow is repeated with a smaller scale.

A scale is a power of 2, so in fp32 the repeated step is that of a run without scaling, to the last bit.
"""

import pytest
import torch
from support import mostly_slow
from support.trainings import SMALL, assert_same, build, history, parameters, trained

from kdpl.clip import model as clip_model

IN_PROCESS = (*SMALL, "DATALOADER.NUM_WORKERS", 0)
STEPS = 15  # three epochs of five batches


def own(output, name, *options):
    import support.own_step  # noqa: F401  it registers them

    return build("KDPL_CoOp", output, *IN_PROCESS, "TRAINER.NAME", name, *options)


@pytest.mark.parametrize("name", mostly_slow(["OwnStepScaled", "OwnStepScaledWithNoise"], sample=("OwnStepScaledWithNoise",)))
def test_a_step_whose_gradients_overflow_is_repeated_with_the_same_batch_and_randomness(name, tmp_path):
    """The step of the subclass is called once for a batch: neither images nor random numbers are drawn again."""
    plain = trained(own(tmp_path / "plain", name.replace("Scaled", "")))
    run = own(tmp_path / "scaled", name)
    assert_same(trained(run), plain)
    assert run.steps == sum(run.passes) == STEPS and run.pixels == [6] * STEPS
    assert len(run.passes) > 2 * STEPS - 2, "the scale grows after each step, until it is too large again"
    assert [row["lr"] for row in history(tmp_path / "scaled")] == [row["lr"] for row in history(tmp_path / "plain")]


@pytest.mark.slow
def test_gradients_that_no_scale_helps_are_left_out_and_halve_the_scale_once(tmp_path):
    run = own(tmp_path, "OwnStepScaled")
    run.scaler = torch.amp.GradScaler(run.device.type, init_scale=2.0**10)
    run.load_for_training()
    run.num_batches, run.batch_idx = 5, 0
    before, batch, update = parameters(run), next(iter(run.train_loader_x)), run.update
    run.update = lambda loss: update(loss * float("inf"))
    run.take_step(batch)
    assert_same(parameters(run), before)
    assert run.steps == 0 and run.scaler.get_scale() == 2.0**9
    run.update = update
    run.take_step(batch)
    assert run.steps == 1 and run.scaler.get_scale() == 2.0**9


@pytest.mark.parametrize("learner", mostly_slow(["VPT", "PromptSRC"], sample=("VPT",)))
def test_a_short_run_under_amp_ends_as_in_fp32(learner, tmp_path, monkeypatch):
    """The gradients of these learners overflow at the scaler's first scale, and two epochs are too short to lose steps."""
    monkeypatch.setattr(clip_model, "FP32_ON_CPU", ())
    ends, steps, starts = {}, [], None
    for value in ("fp32", "amp"):
        options = (*IN_PROCESS, "OPTIM.MAX_EPOCH", 2, "OPTIM.WARMUP_EPOCH", -1, "USE_CUDA", False)
        run = build(f"KDPL_{learner}", tmp_path / value, *options, f"TRAINER.{learner.upper()}.PREC", value)
        run.optim.register_step_post_hook(lambda *_, value=value: steps.append(value))
        starts = torch.cat([p.flatten() for p in parameters(run).values()])
        ends[value] = torch.cat([p.flatten() for p in trained(run).values()]), run.progress.rows[-1]["loss"]
    assert steps == ["fp32"] * 10 + ["amp"] * 10
    assert ends["amp"][1] == pytest.approx(ends["fp32"][1], rel=3e-3)
    assert (ends["amp"][0] - ends["fp32"][0]).norm() < 0.02 * (ends["fp32"][0] - starts).norm()
