"""Every trainer through its whole life on the embedded benchmark, in this process: train, save, resume, evaluate."""

import json

import pytest
import torch
from support import CLASS_SPECIFIC, LEARNERS, config, mostly_slow
from support.trainings import assert_same, build, parameters, stop_after, train

from kdpl.clip.names import ModelNameError
from kdpl.config.manifest import OtherRunError
from kdpl.training.checkpoint import CheckpointError

KDPL = [f"KDPL_{learner}" for learner in LEARNERS]
ALL = [*LEARNERS, *KDPL]
UNTESTED = ("TEST.NO_TEST", True)
OF_ALL = ("KDPL_MaPLe", "KDPL_CoCoOp", "KDPL_TaskRes", "CoOp", "PromptSRC")
ONE = ("OPTIM.MAX_EPOCH", 1, *UNTESTED)


@pytest.mark.parametrize("trainer", mostly_slow(ALL, "KDPL_CoOp", sample=OF_ALL))
def test_it_trains_saves_and_is_evaluated_on_new_classes(trainer, tmp_path):
    run, learned = train(trainer, tmp_path / "train")
    folder = tmp_path / "train" / run.student.model_name
    checkpoint = folder / "model.pth.tar-2"
    assert checkpoint.stat().st_size < 3e6
    assert (folder / "checkpoint").read_text().strip() == checkpoint.name

    new = build(trainer, tmp_path / "new", "DATASET.SUBSAMPLE_CLASSES", "new")
    tested = "new"
    if run.student_class.__name__ in CLASS_SPECIFIC:  # it has nothing for them
        with pytest.raises(OtherRunError, match=r"class names: .* in the folder"):
            new.load_model(str(tmp_path / "train"), epoch=2)
        tested, new = "base", build(trainer, tmp_path / "new")
    new.load_model(str(tmp_path / "train"), epoch=2)
    assert_same(parameters(new), learned)
    accuracy = new.test()
    results = json.loads((tmp_path / "new" / "results.json").read_text())
    assert results["results"][0]["accuracy"] == accuracy
    assert (results["results"][0]["classes"], results["results"][0]["num_classes"]) == (tested, 30)
    assert results["learned_parameters"] == sum(p.numel() for p in learned.values())


@pytest.mark.parametrize("trainer", mostly_slow(["CoOp", "KDPL_PromptSRC"], sample=("CoOp",)))
def test_the_same_seed_gives_the_same_prompts_twice_and_another_seed_others(trainer, tmp_path):
    _, first = train(trainer, tmp_path / "a", *UNTESTED)
    _, again = train(trainer, tmp_path / "b", *UNTESTED)
    _, other = train(trainer, tmp_path / "c", *UNTESTED, seed=2)
    assert_same(first, again)
    assert not all(torch.equal(first[k], other[k]) for k in first)


@pytest.mark.parametrize(
    "trainer", mostly_slow([*KDPL, "PromptSRC", "CoCoOp"], "KDPL_CoOp", sample=("KDPL_PromptSRC", "KDPL_TCP", "CoCoOp"))
)
def test_a_run_that_stops_after_an_epoch_and_is_resumed_ends_bit_identical(trainer, tmp_path):
    epochs = ("OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1, *UNTESTED)
    _, unbroken = train(trainer, tmp_path / "a", *epochs)

    stop_after(build(trainer, tmp_path / "b", *epochs), epoch=1)
    resumed = build(trainer, tmp_path / "b", *epochs)
    resumed.train()
    assert_same(unbroken, parameters(resumed))


@pytest.mark.slow
def test_the_best_epoch_on_the_validation_set_is_deployed(tmp_path):
    run, _ = train("KDPL_CoOp", tmp_path, "TEST.FINAL_MODEL", "best_val", "OPTIM.MAX_EPOCH", 3, "OPTIM.LR", 1.0)
    best = torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar", weights_only=True)
    assert_same(parameters(run), best["state_dict"])
    assert best["val_result"] == run.best_result


@pytest.mark.slow
def test_gaussian_aggregation_is_the_weighted_sum_over_epochs(tmp_path):
    from kdpl.students.promptsrc import gaussian_weights

    run = build("KDPL_PromptSRC", tmp_path, "OPTIM.MAX_EPOCH", 3, "TRAINER.PROMPTSRC.GPA_MEAN", 2, "TEST.NO_TEST", True)
    seen, end_epoch = [], run.student.end_epoch

    def record(epoch, max_epoch):
        seen.append(parameters(run))
        end_epoch(epoch, max_epoch)

    run.student.end_epoch = record
    run.train()
    weights = gaussian_weights(3, 2, 1)
    assert sum(weights) == pytest.approx(1) and weights[1] == max(weights) and weights[0] == pytest.approx(weights[2])
    for key, value in parameters(run).items():
        expected = sum(w * epoch[key] for w, epoch in zip(weights, seen, strict=True))
        torch.testing.assert_close(value, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_promptsrc_reports_its_regularisers_and_minimises_their_sum_with_the_loss(tmp_path):
    run = build("KDPL_PromptSRC", tmp_path)
    run.batch_idx, run.num_batches = 0, 2
    summary = run.forward_backward({"img": torch.randn(3, 3, 64, 64), "label": torch.zeros(3, dtype=torch.long)})
    summary = {name: value.item() for name, value in summary.items()}
    own = [summary[k] for k in ("loss_text", "loss_image", "loss_logits")]
    assert all(value > 0 for value in own)
    assert summary["loss_total"] == pytest.approx(summary["loss"] + sum(own), rel=1e-5)
    assert summary["loss"] == pytest.approx((summary["loss_kl_forward"] + summary["loss_kl_reverse"]) / 2, rel=1e-5)


@pytest.mark.slow
def test_zero_shot_trainers_need_no_training_and_the_teacher_is_the_better_one(tmp_path):
    from dassl.engine import build_trainer

    accuracy = {}
    for name in ("ZeroshotCLIP", "ZeroshotCLIP2", "ZeroshotTeacher"):
        cfg = config("KDPL_CoOp", "emoji_leisure", tmp_path / name, "TRAINER.NAME", name)
        run = build_trainer(cfg)
        run.load_model("")
        accuracy[name] = run.test()
    assert accuracy["ZeroshotTeacher"] > 1.5 * accuracy["ZeroshotCLIP"] > 20


@pytest.mark.parametrize(
    ("trainer", "options", "error", "message"),
    [
        ("KDPL_VPT", ("MODEL.BACKBONE.NAME", "RN50", "INPUT.SIZE", "(224, 224)"), ValueError, "needs a ViT, but .*'RN50' is a"),
        ("KDPL_CoOp", ("MODEL.BACKBONE.NAME", "ViT-B/33"), ModelNameError, "Did you mean .ViT-B/32"),
        ("KDPL_CoOp", ("TRAINER.KDPL.TEACHER", "emoji_techer"), ModelNameError, "Did you mean .emoji_teacher"),
    ],
)
def test_what_cannot_run_is_refused_before_any_model_is_loaded(trainer, options, error, message, tmp_path, monkeypatch):
    import kdpl.trainers.prompts

    monkeypatch.setattr(kdpl.trainers.prompts, "load_clip", lambda *_: pytest.fail("a model was loaded"))
    with pytest.raises(error, match=message):
        build(trainer, tmp_path, *options)


def test_prompts_of_another_variant_are_refused(tmp_path):
    train("CoOp", tmp_path / "a", *ONE)
    with pytest.raises(CheckpointError, match=r"meta_net.linear1.weight \(8, 128\) is missing"):
        build("CoCoOp", tmp_path / "b").load_model(str(tmp_path / "a"))


@pytest.mark.slow
def test_a_checkpoint_of_the_public_code_is_evaluated(tmp_path):
    """Whole-model state dicts with class-dependent buffers, as the public MaPLe and PromptSRC write them."""
    run, learned = train("PromptSRC", tmp_path / "ours", *ONE)
    public = dict(learned)
    public |= {
        "prompt_learner.token_prefix": torch.zeros(99, 1, 128),
        "prompt_learner.token_suffix": torch.zeros(99, 72, 128),
    }
    public |= {f"image_encoder.{k}": v for k, v in run.clip.model.visual.state_dict().items()}
    public |= {f"prompt_learner.ZS_image_encoder.{k}": v for k, v in run.clip.model.visual.state_dict().items()}
    folder = tmp_path / "public" / "VLPromptLearner"
    folder.mkdir(parents=True)
    torch.save(
        {"state_dict": {k: v.half() for k, v in public.items()}, "epoch": 20, "optimizer": {}, "scheduler": {}},
        folder / "model.pth.tar-20",
    )
    other = build("PromptSRC", tmp_path / "b", "DATASET.SUBSAMPLE_CLASSES", "new")
    other.load_model(str(tmp_path / "public"), epoch=20)
    for key, value in parameters(other).items():
        assert torch.equal(value, learned[key].half().float())
