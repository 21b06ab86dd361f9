"""The calculator counts what the code does, and its arithmetic is that of its table."""

import json
import re
from contextlib import contextmanager

import pytest
import torch
from support import ROOT, STEPPED, config, mostly_slow
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdpl import estimate, students
from kdpl.clip import blocks, prompt_layout, vision_tower
from kdpl.clip.loading import load_clip
from kdpl.common import exits
from kdpl.distill.objective import Distillation
from kdpl.experiments import cost

NAMES = ["apple", "green apple", "banana", "loaf of bread", "cup of tea with a slice of lemon"]


def settings(learner, tmp_path, *options):
    return config(
        f"KDPL_{learner}",
        "emoji_meals",
        tmp_path,
        "TRAINER.KDPL.PREC",
        "fp32",
        f"TRAINER.{learner.upper()}.PREC",
        "fp32",
        *options,
    )


@contextmanager
def as_on_a_card():
    """Make real tensors take the way of a card, as tensors without values do."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (blocks, prompt_layout, vision_tower):
            patch.setattr(module, "on_cpu", lambda tensor: False)
        yield


def count(cfg, batch=3, **changes):
    return cost.Step(cfg, NAMES, batch, **changes).count()


def real_step(cfg, batch=3):
    """Return a function that takes the same step on real tensors."""
    clip, teacher = load_clip(cfg.MODEL.BACKBONE.NAME), load_clip(cfg.TRAINER.KDPL.TEACHER)
    learner = getattr(students, cfg.TRAINER.NAME.removeprefix("KDPL_"))
    objective = Distillation(learner(clip, cfg.TRAINER[learner.node], NAMES), teacher, NAMES)

    def step():
        objective.student.zero_grad()
        images = torch.randn(batch, 3, clip.resolution, clip.resolution)  # in memory to the end of the step
        loss, _ = objective(images)
        loss.backward()

    images = torch.randn(1, 3, clip.resolution, clip.resolution)
    objective(images)  # frozen text features are computed once, before the first step
    return objective.student, step


@pytest.mark.parametrize("learner", mostly_slow(STEPPED, sample=("CoOp", "CoCoOp", "PromptSRC", "TaskRes")))
def test_a_step_without_numbers_counts_what_pytorch_counts_in_a_real_one(learner, tmp_path):
    cfg = settings(learner, tmp_path)
    with as_on_a_card():
        student, step = real_step(cfg)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # attention as products it can count
            step()
    tally = count(cfg)
    assert tally.flops() == pytest.approx(counter.get_total_flops(), rel=0.01)
    parts = {part for part in cost.PARTS if tally.flops(part)}
    text = student.text_features(student.prepare(NAMES), torch.randn(3, student.clip.embed_dim))
    multiplies = text.requires_grad and learner != "TaskRes"
    assert parts == {"teacher image", "student image", "loss"} | ({"text"} if multiplies else set())


def test_attention_on_a_cpu_counts_as_its_products():
    q, k, v = (torch.randn(2, 4, 16, 64, requires_grad=True) for _ in range(3))
    product = 2 * 2 * 4 * 16 * 16 * 64
    with cost.Tally() as tally:
        attended = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        assert tally.flops() == 2 * product
        attended.sum().backward()
    assert tally.flops() == 7 * product, "four products of the gradients, and one that is computed again"


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["CoCoOp", "PromptSRC"])
def test_the_memory_of_a_step_without_numbers_is_that_of_a_real_one(learner, tmp_path):
    cfg = settings(learner, tmp_path)
    with as_on_a_card():
        _, step = real_step(cfg)
        with cost.Tally() as tally:
            step()
    assert count(cfg).peak == pytest.approx(tally.peak, rel=0.03)
    del _, step
    assert tally.alive < 0.05 * tally.peak


@pytest.mark.slow
def test_tokens_in_flight_are_bounded_at_the_price_of_a_second_forward_pass(tmp_path):
    free, bound = (count(settings("CoCoOp", tmp_path, "TRAINER.KDPL.MAX_TEXT_ROWS", rows), batch=4) for rows in (0, 50))
    assert bound.peak < free.peak
    assert 1.2 < bound.flops("text") / free.flops("text") < 1.6


@pytest.mark.slow
def test_known_features_cost_nothing_again(tmp_path):
    fresh, warm = (count(settings("CoOp", tmp_path), cached=cached) for cached in (False, True))
    assert fresh.flops("text") == warm.flops("text") > 0
    assert fresh.flops("teacher image") > 100 * warm.flops("teacher image")
    assert warm.flops("student image") == 0 < fresh.flops("student image")
    prompted = count(settings("VPT", tmp_path), cached=True)
    assert prompted.flops("student image") > 0, "what is learned is never known"


@pytest.mark.slow
def test_published_sizes_are_counted_without_loading_them(tmp_path):
    models = ("MODEL.BACKBONE.NAME", "RN50", "TRAINER.KDPL.TEACHER", "ViT-H-14-quickgelu", "TRAINER.COOP.PREC", "fp32")
    cfg = config("KDPL_CoOp", "", tmp_path, *models, config_file=f"{ROOT}/configs/trainers/KDPL_CoOp/vit_b32_ctxv1.yaml")
    step = cost.Step(cfg, NAMES, 2)
    tally = step.count()
    # 24 w^2 + 4 L w a token and layer, the last layer for one of the 257; patches of 14 pixels.
    w, tokens, layers = 1280, 257, 32
    whole = (layers - 1) * tokens * (24 * w**2 + 4 * tokens * w) + tokens * 4 * w**2 + 20 * w**2
    assert tally.flops("teacher image") == pytest.approx(2 * (whole + 256 * 2 * 3 * 14**2 * w), rel=0.01)
    assert step.sizes["teacher"] == pytest.approx(2 * 986e6, rel=0.06), "986 million parameters, almost all halved"
    assert tally.flops("student image") == pytest.approx(2 * 12.2e9, rel=0.1), "RN50 with attention pooling"


def calculated(capsys, *flags, trainer="KDPL_CoOp"):
    """Return what the calculator says of a run on the embedded models."""
    config_file = f"{ROOT}/configs/trainers/{trainer}/emoji.yaml"
    command = ["--trainer", trainer, "--config-file", config_file, "--classes", 5, "--images", 40, "--json", *flags]
    assert estimate.main([str(word) for word in command]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert not any("\\n" in line for line in printed), printed
    return json.loads(printed[-1]), "\n".join(printed[:-1])


@pytest.mark.slow
def test_the_run_is_the_sum_of_its_epochs_with_and_without_known_views(capsys):
    result, printed = calculated(capsys, "--batch", 8, "--epochs", 9, "--views", 2, "--workers", 0, "--gpu", "t4")
    assert printed.startswith("ESTIMATE for KDPL_CoOp, student emoji_student, teacher emoji_teacher")
    assert result["steps_per_epoch"] == 5 and result["epochs"] == {"fresh": 2, "known": 7}
    fresh, known = (result["steps"][kind] for kind in ("fresh", "known"))
    assert result["run_s"] == pytest.approx(5 * (2 * fresh["step"] + 7 * known["step"]))
    assert fresh["step"] == pytest.approx(sum(fresh["parts"].values())) and known["parts"]["data"] == 0
    assert fresh["parts"]["data"] == pytest.approx(8 * estimate.IMAGE_SECONDS)
    assert result["peak_gb"] == pytest.approx(sum(fresh["memory"].values()) / 1e9)
    warm, _ = calculated(capsys, "--batch", 8, "--epochs", 9, "--views", 2, "--workers", 0, "--gpu", "t4", "--warm")
    assert warm["run_s"] == pytest.approx(45 * known["step"])


@pytest.mark.slow
def test_ranks_share_images_and_class_names(capsys):
    def text_and_teacher(*flags):
        result, _ = calculated(capsys, "--batch", 8, *flags)
        return (result["steps"]["fresh"]["flops"][part] for part in ("text", "teacher image"))

    text, teacher = text_and_teacher()
    for_two, teacher_of_two = text_and_teacher("--gpus", 2)
    assert (text, teacher) == (for_two, pytest.approx(2 * teacher_of_two, rel=0.01))
    sharded, _ = text_and_teacher("--gpus", 2, "TRAINER.KDPL.SHARD_CLASSES", "True")
    assert 0.4 * text < sharded < 0.8 * text


@pytest.mark.slow
def test_a_machine_of_ones_own_is_as_fast_as_its_figures(capsys):
    def compute(tflops, bandwidth):
        flags = ("--gpu", "mine", "--tflops", tflops, "--bandwidth", bandwidth, "--memory", 1)
        return calculated(capsys, "--precision", "fp32", *flags)[0]

    slow, slower = compute(0.01, 0.5), compute(0.005, 0.25)  # so slow that no launch of a kernel counts
    parts, other = (r["steps"]["fresh"]["parts"] for r in (slow, slower))
    assert 2 * parts["teacher image"] == pytest.approx(other["teacher image"], rel=0.1)
    assert slow["fits"] and not calculated(capsys, "--gpu", "t4", "--memory", 0.1)[0]["fits"]


@pytest.mark.slow
def test_supervised_runs_have_no_teacher(capsys):
    result, _ = calculated(capsys, trainer="CoOp")
    memory = result["steps"]["fresh"]["memory"]
    assert memory["teacher"] == 0 < memory["student"]


def test_a_part_takes_as_long_as_its_products_and_its_bytes_or_as_its_launches(tmp_path):
    tally = cost.Tally()
    run = estimate.Run(
        estimate.parse_args(["--config-file", f"{ROOT}/configs/trainers/KDPL_CoOp/emoji.yaml", "--classes", "5"])
    )
    machine = estimate.Machine("mine", 1e9, {torch.float32: 1e12, torch.float16: 4e12, cost.BYTES: 1e9})
    tally.counts.update({("text", torch.float32): 10**12, ("text", torch.float16): 10**12, ("loss", torch.float32): 10})
    tally.counts.update({("text", cost.BYTES): 10**9, ("text", cost.LAUNCHES): 10, ("loss", cost.LAUNCHES): 1000})
    parts = estimate.price(run, machine, run.step(cached=False), tally)["parts"]
    assert parts["text"] == pytest.approx(1 + 0.25 + 1)
    assert parts["loss"] == pytest.approx(1000 * estimate.LAUNCH) and parts["optimiser"] == 0


def test_steps_are_timed_here(capsys, monkeypatch):
    took, time = [], cost.Step.time
    monkeypatch.setattr(cost.Step, "time", lambda step: took.append(step) or time(step))
    result, printed = calculated(capsys, "--gpu", "cpu", "--batch", 4, "--workers", 0, "--epochs", 2, "--views", 1)
    (fresh, known), threads = took, torch.get_num_threads()
    assert result["basis"] == f"measured here, {threads} threads" and "measured here" in printed
    assert fresh.needs_pixels and not known.needs_pixels
    assert result["steps"]["fresh"]["parts"]["compute"] > 0 and result["run_s"] > 0
    assert 0.1 < result["peak_gb"] < 20 and result["fits"]


def test_models_that_do_not_fit_are_not_tried_here(capsys):
    flags = ["--config-file", f"{ROOT}/configs/trainers/KDPL_CoOp/emoji.yaml", "--gpu", "cpu", "--memory", "0.001"]
    assert estimate.main(flags) == exits.BAD_INPUT
    assert "A step cannot be timed here: the models alone take" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_a_timed_step_does_what_a_counted_one_does(tmp_path, cached):
    cfg = settings("CoOp", tmp_path)
    with as_on_a_card(), cost.Tally() as tally:
        cost.Step(cfg, NAMES, 3, cached, torch.device("cpu"))()
        made = tally.flops()
    assert made == count(cfg, cached=cached).flops() > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--gpu", "a10O"), "--gpu 'a10O' is not one of h100, h200, a100, "),
        (("--gpu", "a10O"), "Did you mean 'a10'? For a machine of your own give its figures, too (--tflops, --bandwidth"),
        (("--trainer", "KDPL_Coop"), "Did you mean 'KDPL_CoOp'?"),
        (("--gpus", "64"), "A batch of 32 images cannot be shared by 64 GPUs"),
        (("--gpu", "cpu", "--tflops", "1"), "--gpu cpu is measured: --tflops and --bandwidth are for other machines."),
        (("--memory", "-1"), "--memory is -1.0, expected a positive number"),
        (("--classes", "0", "--images", "0"), "--classes is 0, expected at least 1."),
        (("--backbone", "RN50", "--trainer", "KDPL_VPT"), "needs a ViT"),
        (
            ("--teacher", "ViT-B-16-SigLIP:webli", "--classes", "2"),
            "'timm/ViT-B-16-SigLIP' on the Hugging Face hub",
        ),
        (("DATASET.NAME", "EmojiMeals"), "DATASET.NAME 'EmojiMeals' has an unknown number of classes: give --classes."),
    ],
)
def test_what_cannot_be_estimated_is_refused(flags, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert estimate.main(list(flags)) == exits.BAD_INPUT
    assert message in capsys.readouterr().err


def test_a_data_set_tells_its_classes(capsys):
    flags = ("--dataset-config-file", f"{ROOT}/configs/datasets/oxford_pets.yaml", "DATASET.SUBSAMPLE_CLASSES", "new")
    run = estimate.Run(estimate.parse_args(list(flags)))
    assert (run.classes, run.images, run.batch, run.steps) == (18, 288, 32, 9)


def test_the_page_about_scale_tells_commands_that_work_and_machines_that_are_known():
    page = (ROOT / "docs/scale.md").read_text(encoding="utf-8")
    commands = re.findall(r"python -m kdpl\.estimate (--[^\n`]*)", page)
    for command in commands:
        args = estimate.parse_args(command.split())
        estimate.Run(args)
        assert estimate.find_machine(args.gpu).name == args.gpu
    assert len(commands) >= 2
    listed = page.partition("`--gpu` is one of")[2].partition("or\n`cpu`")[0]
    assert re.findall(r"`([\w-]+)`", listed) == list(estimate.GPUS)
    scripts = re.findall(r"python (benchmarks/\w+\.py)", page)
    assert len(scripts) >= 4 and all((ROOT / script).is_file() for script in scripts)
