"""A training leaves prompts that stand alone; a bundle that is damaged, foreign or does not fit is refused by name."""

import dataclasses
import json
import sys

import pytest
import torch
from support import config, processes, save_clip

import kdpl
from kdpl.bundle import CARD_NAME, FILE_NAME, BundleError, read_bundle, write_bundle

TINY = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 1000)
TINY += ("DATASET.SOURCE_DOMAINS", "noto", "DATASET.TARGET_DOMAINS", "twemoji")


def train(name, output, *options):
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    set_random_seed(1)
    run = build_trainer(config(name, "emoji_leisure", output, "--seed", 1, *TINY, *options))
    run.train()
    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    return train("KDPL_CoOp", output), output


@pytest.mark.slow
def test_a_training_leaves_its_prompts_with_all_that_is_needed_to_use_them(trained):
    run, output = trained
    bundle = read_bundle(output)
    learned = run.student.learned.state_dict()
    assert bundle.parameters.keys() == learned.keys()
    assert all(torch.equal(bundle.parameters[k], v.cpu()) for k, v in learned.items())
    assert (bundle.variant, bundle.trainer, bundle.teacher, bundle.epoch) == ("CoOp", "KDPL_CoOp", "emoji_teacher", 2)
    assert bundle.backbone == "emoji_student" and bundle.classnames == run.class_names
    assert bundle.options == dict(run.student.options) and bundle.template == "a photo of a {}."
    assert bundle.preprocessing.size == (64, 64) and bundle.config == run.cfg.dump()
    measured = json.loads((output / "results.json").read_text())["results"][0]
    assert [r["accuracy"] for r in bundle.results] == [measured["accuracy"]]
    assert read_bundle(output / FILE_NAME).classnames == bundle.classnames


def test_the_card_tells_what_was_measured_and_invents_nothing(trained, tmp_path):
    run, output = trained
    card = (output / CARD_NAME).read_text(encoding="utf-8")
    assert f"| {run.last_result['accuracy']:.2f} |" in card and "emoji\\_teacher" in card and "- american football" in card
    names = ["<script>alert(1)</script>", "a|b\n# c", "[x](javascript:y)"]
    write_bundle(tmp_path, dataclasses.replace(read_bundle(output), results=[], classnames=names))
    card = (tmp_path / CARD_NAME).read_text(encoding="utf-8")
    assert "Not measured" in card and "accuracy (%)" not in card
    assert "<script" not in card.replace("\\<", "") and "\n# c" not in card and "[x]" not in card
    assert read_bundle(tmp_path).classnames == names


@pytest.mark.slow
def test_the_best_epoch_is_bundled_where_it_is_deployed(tmp_path):
    run = train("KDPL_CoOp", tmp_path, "TEST.FINAL_MODEL", "best_val", "OPTIM.LR", 1.0)
    best = torch.load(tmp_path / "prompt_learner" / "model-best.pth.tar", map_location="cpu", weights_only=True)
    bundle = read_bundle(tmp_path)
    assert torch.equal(bundle.parameters["ctx"], best["state_dict"]["ctx"]) and bundle.epoch == best["epoch"]
    assert [r["split"] for r in bundle.results] == ["test"] and bundle.results[0] == run.last_result


def test_a_test_that_fails_does_not_cost_the_prompts(tmp_path, monkeypatch):
    from kdpl.trainers import KDPL_CoOp

    def fail(*_):
        raise OSError("an image is broken")

    monkeypatch.setattr(KDPL_CoOp, "test", fail)
    with pytest.raises(OSError, match="an image is broken"):
        train("KDPL_CoOp", tmp_path, "OPTIM.MAX_EPOCH", 1)
    assert read_bundle(tmp_path).results == []


@pytest.mark.slow
def test_loading_neither_unpickles_nor_needs_dassl(trained):
    code = f"""
import pickle, sys
import torch, kdpl.classifier, open_clip
def refuse(*args, **kwargs): raise AssertionError("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = torch.load = refuse
clf = kdpl.load({str(trained[1])!r}, device="cpu")
assert not any(name.split(".")[0] == "dassl" for name in sys.modules), "dassl"
print(clf.text_features.shape[0])
"""
    process = processes.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.stdout.strip() == "39", process.stderr


def test_prompts_that_do_not_fit_are_refused(trained, tmp_path):
    bundle = read_bundle(trained[1])
    for changed, message in (
        ({"parameters": {"ctx": torch.zeros(4, 64)}}, r"ctx is \(4, 64\) .*\(4, 128\) in this model"),
        ({"parameters": {}}, r"ctx \(4, 128\) is missing"),
        ({"options": {**bundle.options, "N_CTXX": 3}}, "'TRAINER.COOP.N_CTXX' is not a config"),
        ({"options": {**bundle.options, "N_CTX": "four"}}, "N_CTX is 'four'"),
        ({"preprocessing": dataclasses.replace(bundle.preprocessing, size=(224, 224))}, r"\(224, 224\)"),
    ):
        write_bundle(tmp_path, dataclasses.replace(bundle, **changed))
        with pytest.raises(BundleError, match=message):
            kdpl.load(tmp_path)


def test_the_clip_may_lie_elsewhere_but_must_be_the_same(trained, tmp_path):
    bundle = read_bundle(trained[1])
    write_bundle(tmp_path, dataclasses.replace(bundle, backbone="/gone/student.pt"))
    with pytest.raises(ValueError, match=r"'/gone/student.pt' .* give where it is as `backbone`"):
        kdpl.load(tmp_path)
    assert kdpl.load(tmp_path, backbone="emoji_student").classnames == bundle.classnames
    other = save_clip(tmp_path / "other.safetensors", 5, 128, 64, 4, 128, 16, 77, 49408, 128, 2, 4)
    with pytest.raises(BundleError, match=r"weights of '.*other.safetensors' are not those"):
        kdpl.load(tmp_path, backbone=other)
    with pytest.raises(BundleError, match=r"do not fit 'RN50': the prompts take images of \(64, 64\), 'RN50' of \(224, 224\)"):
        kdpl.load(tmp_path, backbone="RN50")
