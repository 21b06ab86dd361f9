"""Half precision beside fp32: on a GPU, and on the CPU, where PyTorch computes it too once the rule against it is lifted.

Student and teacher both have the precision. Bounds are relative: of the loss, and of the norm of all gradients.
"""

import itertools
import json
from contextlib import nullcontext
from functools import cache

import pytest
import torch
from support import ROOT, STEPPED, mostly_slow, one_of_each_kind
from support.devices import DEVICES, on, precisions_as_asked, without_gpu  # noqa: F401  a fixture
from support.trainings import build, parameters
from torch.utils._python_dispatch import TorchDispatchMode

from kdpl.clip import similarity_logits
from kdpl.clip.model import cpu_has_bf16
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


# Learners whose gradients are within BOUNDS. Any other's are within what rounding does to its own fp32 run.
STEADY = ("CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP", "KgCoOp", "TaskRes")
# Of the prompts' move. With 4, no hidden unit of CoCoOp's network is so near to zero that rounding turns it on or off.
SEEDS = {"CoCoOp": 4}
ROUNDED = {"fp16": torch.float16, "amp": torch.float16, "bf16": torch.bfloat16}
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "linear", "convolution")


class RoundedProducts(TorchDispatchMode):
    """fp32 with what half precision does to matrix products, convolutions and attention: inputs and outputs are rounded."""

    def __init__(self, dtype):
        super().__init__()
        self.dtype = dtype

    def rounded(self, value):
        return value.to(self.dtype).float() if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        attention = "attention" in name
        if not attention and name not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        count = 3 + ("backward" in name) if attention else len(args)  # queries, keys, values; the rest is kept in fp32
        found = func(*map(self.rounded, args[:count]), *args[count:], **(kwargs or {}))
        if isinstance(found, torch.Tensor):
            return self.rounded(found)
        return tuple(self.rounded(value) if i == 0 or "backward" in name else value for i, value in enumerate(found))


@pytest.fixture(scope="module")
def first_step(tmp_path_factory):
    """Loss, and gradients by name, of the first batch for prompts that have moved from their start."""

    @cache
    def step(learner, value, device, options=(), rounded=None):
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
        with RoundedProducts(rounded) if rounded else nullcontext():
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
    if learner not in STEADY:
        half = "bf16" if device == "cpu" and cpu_has_bf16() else value  # that of a frozen tower there
        _, rounded = first_step(learner, "fp32", device, options, ROUNDED[half])
        of_gradients = max(of_gradients, 1.2 * difference(rounded, exact_gradients))
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


@pytest.mark.parametrize(("images", "texts"), [((5, 3, 8), (4, 8)), ((3, 8), (8,)), ((3, 8), (2, 3, 4, 8))])
def test_features_that_give_other_logits_than_for_images_and_names_are_refused(images, texts):
    with pytest.raises(ValueError, match=r"do not give logits \(B, C\)"):
        similarity_logits(100.0, torch.randn(*images), torch.randn(*texts))


# Of the loss of the second epoch; of the way of the prompts since their start; points of accuracy.
AFTER_TWO_EPOCHS = {"fp16": (1e-2, 0.045, 4), "amp": (1e-2, 0.03, 4), "bf16": (2e-2, 0.2, 8)}


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """Loss of the second epoch, accuracy on 28 images, and the way of the prompts since their start, after four steps."""

    @cache
    def run(learner, value, device):
        output = tmp_path_factory.mktemp("run")
        options = ("DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 14, "OPTIM.WARMUP_EPOCH", -1, *on(device))
        trainer = build(f"KDPL_{learner}", output, *options, *precisions(learner, value), dataset="emoji_leisure")
        del trainer.test_loader.dataset.data_source[28:]
        start = torch.cat([p.flatten() for p in parameters(trainer).values()])
        trainer.train()
        (result,) = json.loads((output / "results.json").read_text())["results"]
        assert result["num_images"] == 28
        way = torch.cat([p.flatten() for p in parameters(trainer).values()]) - start
        return trainer.progress.rows[-1]["loss"], result["accuracy"], way.cpu()

    return run


KINDS = [
    *(pytest.param(l, "cpu", id=f"{l}-cpu") for l in one_of_each_kind(STEPPED)),
    *(pytest.param(l, "cuda", id=f"{l}-cuda", marks=without_gpu) for l in one_of_each_kind(STEPPED)),
]
ON_A_CPU = ["CoOp-cpu", "PromptSRC-cpu"]  # a frozen and a prompted image tower


@pytest.mark.parametrize("value", BOUNDS)
@pytest.mark.parametrize(
    ("learner", "device"), mostly_slow(KINDS, sample=[*ON_A_CPU, *(kind.id for kind in KINDS if kind.values[1] == "cuda")])
)
def test_it_trains_and_tests_as_in_fp32(learner, value, device, two_epochs):
    if (value, device) == ("amp", "cpu"):
        pytest.skip("runs under amp on a CPU are those of tests/trainers/test_amp.py")
    (loss, accuracy, way), (exact_loss, exact_accuracy, exact_way) = (two_epochs(learner, p, device) for p in (value, "fp32"))
    of_loss, of_way, points = AFTER_TWO_EPOCHS[value]
    assert loss == pytest.approx(exact_loss, rel=of_loss)
    assert accuracy == pytest.approx(exact_accuracy, abs=points)
    assert 0 < (way - exact_way).norm() < of_way * exact_way.norm()
