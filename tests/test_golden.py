"""Our trainers give the numbers of the published ones: see tests/golden/README.md."""

import json
from pathlib import Path

import pytest
import torch
from support import config, image_file, mostly_slow
from support.devices import DEVICES, on, precisions_as_asked  # noqa: F401  a fixture

GOLDEN = Path(__file__).parent / "golden"
NAMES = [
    "tabby cat", "golden_retriever", "fire truck", "acoustic guitar", "snow-covered mountain",
    "apple pie", "Boeing 747", "sea turtle", "spider", "hot-air balloon",
]  # fmt: skip
OURS = {"loss symmetric KL": "loss", "loss KL forward": "loss_kl_forward", "loss KL reverse": "loss_kl_reverse"}


@pytest.fixture(scope="module")
def golden_dataset(tmp_path_factory):
    """A data set of the golden class names, registered as GoldenPets; its images are not what the steps see."""
    from dassl.data.datasets import DATASET_REGISTRY, DatasetBase, Datum

    folder = tmp_path_factory.mktemp("images")

    class GoldenPets(DatasetBase):
        def __init__(self, cfg):
            data = [Datum(str(image_file(folder / f"{i}.png")), i, 0, name) for i, name in enumerate(NAMES)]
            super().__init__(train_x=data, val=data, test=data)

    DATASET_REGISTRY.register(force=True)(GoldenPets)
    return "GoldenPets"


def build(name, golden, clips, dataset, output, device, precision="fp32"):
    from dassl.engine import build_trainer

    learner, distilled, _ = (*name.split("_"), "", "")[:3]
    trainer = f"KDPL_{learner}" if distilled else learner
    options = [
        "DATASET.NAME", dataset, "DATASET.TEMPLATE", "a photo of a {}, a type of pet.",
        "MODEL.BACKBONE.NAME", clips[0], "TRAINER.KDPL.TEACHER", clips[1], *on(device),
        "TRAINER.KDPL.PREC", "fp32" if golden["class_agnostic"] else precision,
        "OPTIM.NAME", "sgd", "OPTIM.LR", golden["lr"], "OPTIM.WARMUP_EPOCH", -1, "OPTIM.MAX_EPOCH", 2, "INPUT.SIZE", "(64, 64)",
        "TRAINER.KDPL.CLASS_AGNOSTIC", golden["class_agnostic"], "TRAINER.KDPL.K_MAX", 20,
        "TRAINER.KDPL.VOCABULARY", GOLDEN / "vocab120.txt",
    ]  # fmt: skip
    node = {"CoOp": "COOP", "CoCoOp": "COCOOP", "MaPLe": "MAPLE"}[learner]
    options += [f"TRAINER.{node}.N_CTX", 2 if node == "MAPLE" else 4, f"TRAINER.{node}.PREC", precision]
    if node == "MAPLE":
        options += ["TRAINER.MAPLE.PROMPT_DEPTH", 3]
    return build_trainer(config(trainer, "", output, *options))


def start(trainer, golden):
    """Set the golden prompts; return the learned parameters by name, the batches and the test images."""
    parameters = dict(trainer._models[golden["model_name"]].named_parameters())
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for key in sorted(parameters):
            parameters[key].copy_(0.02 * torch.randn(parameters[key].shape, generator=generator))
    generator = torch.Generator().manual_seed(7)
    batches = [
        {
            "img": torch.randn(4, 3, 64, 64, generator=generator),
            "label": torch.randint(0, 10, (4,), generator=generator),
        }
        for _ in range(4)
    ]
    return parameters, batches, torch.randn(6, 3, 64, 64, generator=generator).to(trainer.device)


def steps(trainer, batches):
    """Take a step on each batch and yield what it reports."""
    trainer.set_model_mode("train")
    trainer.epoch, trainer.num_batches = 0, len(batches) + 1
    for trainer.batch_idx, batch in enumerate(batches):
        yield trainer.forward_backward(batch)
    trainer.set_model_mode("eval")


GOLDENS = sorted(path.stem for path in GOLDEN.glob("*.json"))


def read(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.usefixtures("precisions_as_asked")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", mostly_slow(GOLDENS, "CoOp_KDPL", "CoOp_KDPL_ca"))
def test_losses_logits_and_parameters_are_the_published_ones(name, device, golden_clips, golden_dataset, tmp_path):
    golden = read(name)
    trainer = build(name, golden, golden_clips, golden_dataset, tmp_path, device)
    parameters, batches, test_images = start(trainer, golden)
    assert {n: list(p.shape) for n, p in parameters.items()} == golden["params"]

    def assert_logits(expected):
        if not golden["class_agnostic"]:  # the published code evaluates on the vocabulary there
            assert torch.allclose(trainer.model_inference(test_images).cpu(), torch.tensor(expected), atol=1e-3)

    assert_logits(golden["logits_before"])
    for summary, expected in zip(steps(trainer, batches), golden["losses"], strict=True):
        for key, value in expected.items():
            assert summary[OURS.get(key, key)].item() == pytest.approx(value, rel=1e-5), key
    assert_logits(golden["logits_after"])
    for key, (total, absolute) in golden["param_sums_after"].items():
        assert parameters[key].sum().item() == pytest.approx(total, rel=1e-3, abs=1e-3 * absolute), key
        assert parameters[key].abs().sum().item() == pytest.approx(absolute, rel=1e-3), key


# Bounds of the losses of four steps, each after what was rounded before; processors with matrix units for bf16 round otherwise.
HALF = {"fp16": 1e-2, "amp": 1e-2, "bf16": 5e-2}


@pytest.mark.slow
@pytest.mark.usefixtures("precisions_as_asked")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("name", [name for name in GOLDENS if "KDPL" in name])
def test_losses_in_half_precision_are_near_the_published_ones(name, precision, device, golden_clips, golden_dataset, tmp_path):
    """The teacher too, unless it selects names: in half precision it may select another one at the border of the K."""
    if device == "cpu" and precision != "bf16" and name != "CoOp_KDPL":
        pytest.skip("fp16 takes a CPU long: one file is enough there")
    golden = read(name)
    trainer = build(name, golden, golden_clips, golden_dataset, tmp_path, device, precision)
    _, batches, _ = start(trainer, golden)
    found = [summary["loss"].item() for summary in steps(trainer, batches)]
    published = [next(value for key, value in losses.items() if OURS.get(key, key) == "loss") for losses in golden["losses"]]
    assert found == pytest.approx(published, rel=HALF[precision])
    assert found != pytest.approx(published, rel=1e-6), "it was another precision"
