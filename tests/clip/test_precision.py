"""Half precision beside fp32: on a GPU, and on the CPU, where PyTorch computes it too once the rule against it is lifted.

Student and teacher both have the precision. Bounds are relative: of the loss, and of the norm of all gradients.
"""

import itertools
from functools import cache

import pytest
import torch
from support import ROOT, STEPPED
from support.devices import DEVICES, on, precisions_as_asked, without_gpu  # noqa: F401  a fixture
from support.trainings import build

from kdpl.clip import similarity_logits
from kdpl.students import Student

pytestmark = pytest.mark.usefixtures("precisions_as_asked")

BOUNDS = {"fp16": (1e-3, 1e-2), "amp": (1e-3, 1e-2), "bf16": (1e-2, 4e-2)}  # of the loss and of the gradients; CPUs differ
AGNOSTIC = (  # the teacher in fp32: in bf16 it takes another name at the border of K_MAX, which moves the loss by a percent
    *("TRAINER.KDPL.CLASS_AGNOSTIC", True, "TRAINER.KDPL.K_MAX", 20, "TRAINER.KDPL.PREC", "fp32"),
    *("TRAINER.KDPL.VOCABULARY", ROOT / "tests/golden/vocab120.txt"),
)
IN_PROCESS = ("DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)


def precisions(learner, value):
    return (f"TRAINER.{Student.known[learner].node}.PREC", value, "TRAINER.KDPL.PREC", value)


# Learners whose gradients are within BOUNDS. Any other's are finite: rounding alone moves them further.
STEADY = ("CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP", "KgCoOp", "TaskRes")
# Of the prompts' move. With 4, no hidden unit of CoCoOp's network is so near to zero that rounding turns it on or off.
SEEDS = {"CoCoOp": 4}


@pytest.fixture(scope="module")
def first_step(tmp_path_factory):
    """Loss, and gradients by name, of the first batch for prompts that have moved from their start."""

    @cache
    def step(learner, value, device, options=()):
        output = tmp_path_factory.mktemp("run")
        run = build(f"KDPL_{learner}", output, *IN_PROCESS, *on(device), *precisions(learner, value), *options)
        half = {"fp32": (torch.float32, None), "fp16": (torch.float16, None), "amp": (torch.float32, torch.float16)}
        expected = half.get(value, (torch.float32, torch.bfloat16))
        for clip in (run.clip,) if options else (run.clip, run.objective.teacher.clip):
            assert (clip.dtype, clip.frozen_autocast_dtype) == expected
        generator = torch.Generator().manual_seed(SEEDS.get(learner, 5))
        with torch.no_grad():
            for parameter in run.student.learned.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(device))
        run.set_model_mode("train")
        batch = next(iter(run.train_loader_x))
        loss, _ = run.compute_loss(batch)
        loss.backward()
        return loss.item(), {name: p.grad.cpu() for name, p in run.student.learned.named_parameters()}

    return step


def assert_close_to_fp32(first_step, learner, value, device, options=()):
    (loss, gradients), (exact, exact_gradients) = (first_step(learner, p, device, options) for p in (value, "fp32"))
    of_loss, of_gradients = BOUNDS[value]
    assert loss != exact, "it was another precision"
    assert loss == pytest.approx(exact, rel=of_loss)
    for name, gradient in gradients.items():
        assert torch.isfinite(gradient).all() and gradient.abs().sum() > 0, name
    if learner in STEADY:
        assert difference(gradients, exact_gradients) < of_gradients


def difference(gradients, exact):
    """Return the norm of the difference over that of the exact gradients, all names together."""
    found, expected = (torch.cat([g.flatten() for g in some.values()]) for some in (gradients, exact))
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("learner", "value"),
    [pytest.param(l, p, marks=[] if l == "VPT" else pytest.mark.slow) for l, p in itertools.product(STEPPED, BOUNDS)],
)
def test_loss_and_gradients_are_those_of_fp32(learner, value, device, first_step):
    assert_close_to_fp32(first_step, learner, value, device)


@pytest.mark.slow
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", BOUNDS)
@pytest.mark.parametrize("learner", ["CoOp", "MaPLe"])
def test_loss_and_gradients_are_those_of_fp32_when_the_classes_are_unknown(learner, value, device, first_step):
    assert_close_to_fp32(first_step, learner, value, device, AGNOSTIC)


@pytest.mark.parametrize("shape", [(5, 8), (3, 5, 8)])
def test_logits_are_fp32_under_autocast(shape):
    images, texts = torch.randn(3, 8), torch.randn(*shape)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = similarity_logits(100.0, images, texts)
    assert logits.dtype == torch.float32 and torch.equal(logits, similarity_logits(100.0, images, texts))
