"""`forward_backward(batch)` is the training step: a subclass that overrides it is called, on both engines.

Gradient scaling, several ranks, views and resuming work around it as around the trainers' own.
"""

import sys

import pytest
import torch
from support import ROOT, emoji_args, mostly_slow, processes
from support.installed_dassl import installed_dassl
from support.ranks import run_ranks
from support.trainings import EVERY_STEP, SMALL, Killed, assert_same, build, die_at, history, trained

from kdpl.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.slow

IN_PROCESS = (*SMALL, "DATALOADER.NUM_WORKERS", 0)


def own(output, *options, name="OwnStep"):
    import support.own_step  # noqa: F401  it registers them

    return build("KDPL_CoOp", output, *IN_PROCESS, "TRAINER.NAME", name, *options)


# -------------------------------------------------------------------------------------------------------------- one engine


def test_it_is_called_for_every_batch_and_what_it_minimises_and_reports_counts(tmp_path):
    plain = trained(build("KDPL_CoOp", tmp_path / "plain", *IN_PROCESS))
    run = own(tmp_path / "own")
    assert_same(trained(run), plain)
    assert run.pixels == [6] * 15, "three epochs of five batches"
    rows = history(tmp_path / "own")
    assert [set(row) for row in rows] == [{"epoch", "lr", "loss", "own_images"}] * 3
    assert [float(row["own_images"]) for row in rows] == [6] * 3
    assert [row["loss"] for row in rows] == [row["loss"] for row in history(tmp_path / "plain")]
    doubled = trained(own(tmp_path / "doubled", name="OwnStepDoubled"))
    assert not torch.equal(doubled["ctx"], plain["ctx"])


# As with PYTHONPATH, but without a server of forked processes for it alone.
UNDER_ANOTHER_ROOF = """
import runpy, sys
del sys.argv[0]
sys.path[:0] = [sys.argv.pop(0), sys.argv.pop(0)]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_it_is_called_on_an_installed_dassl(tmp_path):
    """A real one if KDPL_DASSL names it; tests/support/installed_dassl.py says what stands in for it otherwise."""
    roof = installed_dassl(tmp_path / "site")
    outputs = {}
    for name in ("KDPL_CoOp", "OwnStep", "OwnStepDoubled"):
        outputs[name] = tmp_path / name
        options = (*SMALL, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAINER.NAME", name)
        options = (*emoji_args("KDPL_CoOp", outputs[name]), *options, "DATALOADER.NUM_WORKERS", 0)
        process = processes.run(
            [sys.executable, "-c", UNDER_ANOTHER_ROOF, roof, ROOT, ROOT / "tests/support/own_step.py", *options],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        assert "Dassl: installed" in process.stdout
    prompts = {name: load_checkpoint(o / "prompt_learner/model.pth.tar-3")["state_dict"] for name, o in outputs.items()}
    assert [float(row["own_images"]) for row in history(outputs["OwnStep"])] == [6] * 3
    assert_same(prompts["OwnStep"], prompts["KDPL_CoOp"])
    assert not torch.equal(prompts["OwnStepDoubled"]["ctx"], prompts["KDPL_CoOp"]["ctx"])


# -------------------------------------------------------------------------------------------------------- gradient scaling


# ----------------------------------------------------------------------------------------------------------- several ranks


def on_ranks(ranks, name, output, *options):
    small = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", *SMALL, "OPTIM.MAX_EPOCH", 2)
    # 30 images in batches of 7: a rank of two has 3 or 4 of them.
    batches = ("DATALOADER.TRAIN_X.BATCH_SIZE", 7, "DATALOADER.NUM_WORKERS", 0, "TRAINER.NAME", name)
    args = (*emoji_args("KDPL_CoOp", output), *small, *batches, *options)
    return run_ranks(ranks, ROOT / "tests/support/own_step.py", *args)


def test_ranks_sum_its_gradients_by_their_shares(tmp_path):
    found = {}
    for ranks in (1, 2):
        process = on_ranks(ranks, "OwnStep", tmp_path / str(ranks))
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        found[ranks] = load_checkpoint(tmp_path / str(ranks) / "prompt_learner/model.pth.tar-2")["state_dict"]
        assert [float(row["own_images"]) for row in history(tmp_path / str(ranks))] == [7] * 2
    torch.testing.assert_close(found[1]["ctx"], found[2]["ctx"], atol=1e-6, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------ views, resume


@pytest.mark.parametrize("with_scaling", mostly_slow([False, True], sample=(True,)))
def test_a_run_killed_between_its_steps_ends_bit_identical(with_scaling, tmp_path):
    unbroken, broken = (own(tmp_path / folder, *EVERY_STEP, name="OwnStepInParts") for folder in ("unbroken", "broken"))
    last = own(tmp_path / "broken", name="OwnStepInParts")
    if with_scaling:  # a scale that grows on the way, so that a forgotten one shows
        for run in (unbroken, broken, last):
            run.scaler = torch.amp.GradScaler(run.device.type, init_scale=2.0**10, growth_interval=2, enabled=True)
    expected = trained(unbroken)
    die_at(broken, 7)
    with pytest.raises(Killed):
        broken.train()
    assert_same(trained(last), expected)
    assert len(broken.pixels) == 7 and len(last.pixels) == 8
    assert last.scaler.state_dict() == unbroken.scaler.state_dict()
    assert history(tmp_path / "broken") == history(tmp_path / "unbroken")


def test_a_step_that_draws_random_numbers_is_resumed_with_the_next_ones(tmp_path):
    expected = trained(own(tmp_path / "unbroken", *EVERY_STEP, name="OwnStepWithNoise"))
    broken = own(tmp_path / "broken", *EVERY_STEP, name="OwnStepWithNoise")
    die_at(broken, 7)
    with pytest.raises(Killed):
        broken.train()
    assert_same(trained(own(tmp_path / "broken", name="OwnStepWithNoise")), expected)
