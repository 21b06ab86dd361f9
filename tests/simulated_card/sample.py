"""A sample of all work on the simulated card beside the same on the CPU: tests/test_simulated_card.py runs it on one."""

import pytest
import torch
from support import (
    ROOT,
    STEPPED,
    fork_styles,  # noqa: F401  registers trainers
)
from support.devices import on
from support.trainings import Killed, build, die_at, history, parameters

import kdpl
import kdpl.trainers
from kdpl import predict
from kdpl.students import promptsrc

kdpl.trainers.offer_distilled()

TWO_STEPS = (  # each an epoch, after which a run may resume
    *("DATALOADER.TRAIN_X.BATCH_SIZE", 30, "OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1),
    *("DATALOADER.NUM_WORKERS", 0, "OPTIM.WARMUP_EPOCH", -1, "TEST.NO_TEST", True),
)
FP32 = ("TRAINER.KDPL.PREC", "fp32", *(word for name in STEPPED for word in (f"TRAINER.{name.upper()}.PREC", "fp32")))
BOUND = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(autouse=True)
def few_sentences(monkeypatch):
    """PromptSRC encodes each class in 3 sentences instead of 60: most of its time."""
    monkeypatch.setattr(promptsrc, "FROZEN_TEMPLATES", 3)


def trained(trainer, folder, device, *options, resumed=False):
    """Return a trainer after two steps; a resumed one has ended after the first, and began again from what it had saved."""
    options = (*TWO_STEPS, *FP32, *on(device), *options)
    run = build(trainer, folder, *options)
    if resumed:
        die_at(run, 1)
        with pytest.raises(Killed):
            run.train()
        assert list(folder.rglob("model.pth.tar-1"))
        run = build(trainer, folder, *options)
    run.train()
    assert run.device.type == device and {p.device.type for p in run.student.learned.parameters()} == {device}
    return run


def assert_agree(card, cpu, folder):
    """Assert that two runs have the same losses and learned the same."""
    losses = [[float(row["loss"]) for row in history(folder / device)] for device in ("cuda", "cpu")]
    torch.testing.assert_close(*map(torch.tensor, losses), **BOUND)
    found, expected = parameters(card), parameters(cpu)
    # Adam divides a gradient by its size, so that the rounding of one near 0 is a share of the rate.
    bound = {"atol": 0.1 * cpu.cfg.OPTIM.LR, "rtol": 0} if cpu.cfg.OPTIM.NAME == "adam" else BOUND
    torch.testing.assert_close({name: value.cpu() for name, value in found.items()}, expected, **bound)


def both(trainer, folder, *options, resumed=True):
    card, cpu = (
        trained(trainer, folder / "cuda", "cuda", *options, resumed=resumed),
        trained(trainer, folder / "cpu", "cpu", *options),
    )
    assert_agree(card, cpu, folder)
    return card, cpu


@pytest.mark.parametrize("learner", STEPPED)
def test_learner(learner, tmp_path):
    both(f"KDPL_{learner}", tmp_path)


@pytest.mark.parametrize("precision", ["fp16", "amp", "bf16"])
def test_half_precision(precision, tmp_path):
    """That of the published settings; kernels of the CPU are no measure of its numbers."""
    halves = ("TRAINER.KDPL.PREC", precision, "TRAINER.COOP.PREC", precision)
    run = trained("KDPL_CoOp", tmp_path, "cuda", *halves, resumed=True)
    assert run.progress.rows[-1]["loss"] > 0


def test_class_agnostic(tmp_path):
    vocabulary = ("TRAINER.KDPL.VOCABULARY", ROOT / "tests/golden/vocab120.txt", "TRAINER.KDPL.K_MAX", 20)
    both("KDPL_CoOp", tmp_path, "TRAINER.KDPL.CLASS_AGNOSTIC", True, *vocabulary)


def test_views(tmp_path):
    """Cold ones in the first epoch, warm ones in the second."""
    both("KDPL_CoOp", tmp_path, "TRAINER.KDPL.VIEWS", 1)


def test_evaluation_and_prediction(tmp_path):
    card, cpu = both("KDPL_MaPLe", tmp_path)
    for run in (card, cpu):
        del run.test_loader.dataset.data_source[20:]
    assert card.test() == cpu.test()
    assert card.last_result["right_by_class"] == cpu.last_result["right_by_class"]
    photos = [item.impath for item in cpu.test_loader.dataset.data_source[:4]]
    there, here = (kdpl.load(tmp_path / "cuda", device=device) for device in ("cuda", "cpu"))
    torch.testing.assert_close(there(photos), here(photos), **BOUND)
    assert predict.main([str(tmp_path / "cuda"), *photos, "--device", "cuda", "--json", str(tmp_path / "rows.json")]) == 0


@pytest.mark.parametrize("style", ["StyleCoOp", "StyleMixup"])
def test_wrapped_trainer(style, tmp_path):
    learned = []
    for device in ("cuda", "cpu"):
        run = build(f"KDPL_{style}", tmp_path / device, *TWO_STEPS, "TRAINER.KDPL.PREC", "fp32", *on(device))
        run.train()
        learned.append({name: value.cpu() for name, value in run.model.learner.state_dict().items()})
    torch.testing.assert_close(*learned, **BOUND)
