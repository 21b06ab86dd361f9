"""A training step never waits for the device: no number is read from it, and nothing is sent to it but the images.

Counted on the CPU, where waiting costs nothing, by the operations and methods that make the program wait on a GPU; around the
steps, on the simulated card, by the copies and operations that made the host wait.
"""

from collections import Counter

import pytest
import torch
from support import ROOT, STEPPED, mostly_slow
from support.card import needs_simulated_card, run_tests_on_card
from support.trainings import SMALL, build
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from kdpl.clip import model as clip_model

aten = torch.ops.aten
WAITING = {  # operations that read from the device, or whose result has a size that only the device knows; and new tensors
    aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten.equal, aten._unique2, aten.lift_fresh,
}  # fmt: skip
METHODS = {"item", "tolist", "cpu", "numpy", "__bool__", "__int__", "__float__", "__index__", "__array__"}


class Operations(TorchDispatchMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masks = func.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            mask is not None and mask.dtype == torch.bool for mask in args[1]
        )
        if masks or func.overloadpacket in WAITING:
            self.found[f"{func.overloadpacket}{' by a mask' if masks else ''}"] += 1
        return func(*args, **(kwargs or {}))


class Methods(TorchFunctionMode):
    def __init__(self, found):
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name in METHODS and args and isinstance(args[0], Tensor):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))


def waits(call):
    """Return what a call does that makes the program wait, by name."""
    found = Counter()
    with Operations(found), Methods(found):
        call()
    return dict(found)


def second_step(run):
    """Return what the second training step of a run waits for; the first one fills caches and makes the momentum."""
    run.load_for_training()
    run.set_model_mode("train")
    run.num_batches, run.batch_idx = 5, 1
    first, second, *_ = run.train_loader_x
    run.take_step(first)
    return waits(lambda: run.take_step(second))


@pytest.mark.parametrize("trainer", mostly_slow([f"KDPL_{learner}" for learner in STEPPED] + ["CoOp"], "KDPL_CoOp"))
def test_no_step_waits(trainer, tmp_path):
    sgd = ("OPTIM.NAME", "sgd")  # Adam reads its count of steps, which is on the CPU wherever it computes
    assert second_step(build(trainer, tmp_path, *SMALL, "DATALOADER.NUM_WORKERS", 0, *sgd)) == {}


def test_a_class_agnostic_step_reads_the_selected_names_once(tmp_path):
    """They become texts, which the CPU prepares; the prompts of new names are sent to the device."""
    vocabulary = ("TRAINER.KDPL.VOCABULARY", ROOT / "tests/golden/vocab120.txt", "TRAINER.KDPL.K_MAX", 20)
    run = build("KDPL_CoOp", tmp_path, *SMALL, "DATALOADER.NUM_WORKERS", 0, "TRAINER.KDPL.CLASS_AGNOSTIC", True, *vocabulary)
    found = second_step(run)
    assert found.pop("tolist") == 1
    assert found.keys() <= {"aten.lift_fresh"}


def test_amp_reads_whether_the_gradients_are_finite_and_nothing_else(tmp_path, monkeypatch):
    """PyTorch's scaler does, to leave a step out; that a step was not left out is known without a second number."""
    monkeypatch.setattr(clip_model, "FP32_ON_CPU", ())
    options = ("DATALOADER.NUM_WORKERS", 0, "TRAINER.COOP.PREC", "amp", "USE_CUDA", False)
    run = build("KDPL_CoOp", tmp_path, *SMALL, *options)
    assert run.scaler.is_enabled()
    assert second_step(run) == {"item": 1, "aten._local_scalar_dense": 1}


@pytest.mark.slow
@needs_simulated_card
def test_nor_does_anything_around_the_steps_wait_more_than_once():
    """A print once an interval, an evaluation once at its end, cold views never."""
    run_tests_on_card("waits.py")
