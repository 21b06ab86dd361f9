"""A run on a GPU as on the CPU, on the embedded benchmark: resuming and several ranks.

Most of these tests run on the CPU too, where all of this is tested at more places. `scripts/gpu_check.sh` runs them on a GPU,
and steps at the sizes of real models.
"""

import csv

import pytest
import torch
from support import ROOT, emoji_args
from support.devices import DEVICES, on, precisions_as_asked  # noqa: F401  a fixture
from support.ranks import run_ranks
from support.trainings import EVERY_STEP, SMALL, TINY, Killed, assert_same, build, die_at, parameters

from kdpl.training.checkpoint import load_checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("precisions_as_asked", "deterministic_again")]

IN_PROCESS = ("DATALOADER.NUM_WORKERS", 0)


@pytest.fixture
def deterministic_again():
    yield
    torch.use_deterministic_algorithms(False)


def losses(output):
    with (output / "history.csv").open() as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("trainer", "precision"), [("KDPL_CoOp", "fp32"), ("KDPL_CoOp", "fp16"), ("KDPL_VPT", "amp")])
def test_a_killed_deterministic_run_ends_bit_identical(trainer, precision, device, tmp_path):
    if device == "cpu" and precision != "amp":
        pytest.skip("tests/trainers/test_interruption.py does this on a CPU")
    node = trainer.removeprefix("KDPL_").upper()
    options = (*SMALL, *IN_PROCESS, "TRAIN.DETERMINISTIC", True, "OPTIM.MAX_EPOCH", 2, *on(device))
    options += (f"TRAINER.{node}.PREC", precision, "TRAINER.KDPL.PREC", "fp32" if device == "cpu" else precision)
    unbroken, broken = (build(trainer, tmp_path / name, *options, *EVERY_STEP) for name in ("unbroken", "broken"))
    unbroken.train()
    die_at(broken, 7)
    with pytest.raises(Killed):
        broken.train()
    last = build(trainer, tmp_path / "broken", *options)
    last.train()
    assert_same(parameters(last), parameters(unbroken))
    assert losses(tmp_path / "broken") == losses(tmp_path / "unbroken")
    assert last.scaler.state_dict() == unbroken.scaler.state_dict()


@pytest.mark.parametrize("device", DEVICES[1:])
def test_two_ranks_on_one_device_train_as_one_does(device, tmp_path):
    """As tests/test_distributed.py has it on a CPU."""
    ends = {}
    for ranks in (1, 2):
        options = (*TINY, *SMALL, *IN_PROCESS, "OPTIM.MAX_EPOCH", 2, "TRAINER.KDPL.SHARD_CLASSES", True, *on(device))
        precisions = ("TRAINER.COOP.PREC", "fp32", "TRAINER.KDPL.PREC", "fp32")
        args = (*emoji_args("KDPL_CoOp", tmp_path / str(ranks)), *options, *precisions)
        process = run_ranks(ranks, ROOT / "train.py", *args)
        assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
        ends[ranks] = load_checkpoint(tmp_path / str(ranks) / "prompt_learner/model.pth.tar-2")["state_dict"]["ctx"]
    torch.testing.assert_close(ends[1], ends[2], atol=1e-5, rtol=1e-4)
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), rel=1e-4)
