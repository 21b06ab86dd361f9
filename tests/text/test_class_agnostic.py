"""Class-agnostic training: names of a vocabulary in training, the data set's own names in evaluation."""

import csv
import json

import pytest
import torch
from support import ROOT, SHARED, config, mostly_slow
from support.trainings import build_student

from kdpl.clip.loading import load_clip
from kdpl.distill.loss import distillation_loss
from kdpl.distill.selection import COLUMNS, SelectionReport, select_names
from kdpl.distill.teacher import Teacher
from kdpl.text.feature_cache import cached_text_features
from kdpl.text.templates import DEFAULT
from kdpl.text.vocabulary import load_vocabulary

EMBEDDED = ROOT / "datasets" / "embedded" / "vocabulary.txt"


@pytest.fixture(scope="module")
def clips():
    return load_clip("emoji_student"), load_clip("emoji_teacher")


@pytest.fixture(scope="module")
def vocabulary():
    """A sixth of the embedded vocabulary."""
    return load_vocabulary(str(EMBEDDED))[::6]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache of text features; the drawn scenes stay shared."""
    folder = tmp_path_factory.mktemp("features")
    monkeypatch.setattr("kdpl.text.feature_cache.cache_dir", lambda: folder)
    return folder / "text_features"


def images(batch=4, seed=0):
    return torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("learner", mostly_slow(SHARED, "CoOp", "CoCoOp"))
def test_a_step_is_the_class_aware_step_over_the_names_that_were_selected(clips, vocabulary, learner):
    """Selecting is all that is new: the same loss and gradient as with the selected names as class names."""
    student, (_, teacher_clip) = build_student(learner, clips[0]), clips
    x, mean, std = images(), teacher_clip.mean, teacher_clip.std

    def loss_and_gradients(names, logits):
        output = student(x, student.prepare(names))
        own = student.regularisers(output, student.frozen_image_features(x), names)
        loss = distillation_loss(output.logits, logits)["loss"] + sum(own.values())
        return loss.detach(), torch.autograd.grad(loss, list(student.learned.parameters()))

    features = cached_text_features(teacher_clip, vocabulary, DEFAULT)
    agnostic = Teacher(teacher_clip, vocabulary, DEFAULT, mean, std, text_features=features)
    logits = agnostic.logits(agnostic.image_features(x), student.logit_scale)
    chosen, _ = select_names(logits, 20)
    names = [vocabulary[i] for i in chosen.tolist()]
    agnostic = loss_and_gradients(names, logits[:, chosen])
    aware_teacher = Teacher(teacher_clip, names, DEFAULT, mean, std)
    aware = loss_and_gradients(names, aware_teacher.logits(aware_teacher.image_features(x), student.logit_scale))
    assert torch.allclose(agnostic[0], aware[0], rtol=1e-4)
    for a, b in zip(agnostic[1], aware[1], strict=True):
        assert torch.allclose(a, b, rtol=1e-2, atol=1e-5 + 1e-3 * b.abs().max().item())


def read(path):
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_report_counts_what_was_selected_and_orders_it(tmp_path):
    report = SelectionReport(["cat", 'hat, "straw"', "never", "dog"])
    report.add(torch.tensor([1, 0]), torch.tensor([0.5, 0.25]))
    report.add(torch.tensor([1, 3]), torch.tensor([0.3, 0.5]))
    report.write(tmp_path / "out" / "selected_classes.csv")
    assert (tmp_path / "out" / "selected_classes.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    rows = read(tmp_path / "out" / "selected_classes.csv")
    assert [r["name"] for r in rows] == ['hat, "straw"', "dog", "cat"]
    assert [(r["times_selected"], r["share_of_batches"]) for r in rows] == [
        ("2", "1.0000"),
        ("1", "0.5000"),
        ("1", "0.5000"),
    ]
    assert [float(r["mean_probability"]) for r in rows] == pytest.approx([0.4, 0.5, 0.25], abs=1e-6)


def options(tmp_path, vocabulary, *more):
    path = tmp_path / "names.txt"
    path.write_text("\n".join(vocabulary))
    return [
        "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1,
        "TRAINER.KDPL.CLASS_AGNOSTIC", True, "TRAINER.KDPL.K_MAX", 10, "TRAINER.KDPL.VOCABULARY", path, *more,
    ]  # fmt: skip


def build(learner, tmp_path, vocabulary, *more):
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    cfg = config(f"KDPL_{learner}", "emoji_meals", tmp_path / "out", "--seed", 1, *options(tmp_path, vocabulary, *more))
    set_random_seed(1)
    return build_trainer(cfg)


@pytest.mark.parametrize("learner", mostly_slow(SHARED, sample=("CoOp", "CoCoOp", "VPT")))
def test_every_variant_trains_on_the_vocabulary_and_is_evaluated_on_the_real_names(learner, tmp_path, vocabulary):
    trainer = build(learner, tmp_path, vocabulary)
    before = {k: v.clone() for k, v in trainer.student.learned.state_dict().items()}
    trainer.train()
    after = trainer.student.learned.state_dict()
    assert any(not torch.equal(before[k], after[k]) for k in before)

    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results["class_agnostic"] is True
    assert results["results"][0]["num_classes"] == len(trainer.class_names) == 30
    rows = read(tmp_path / "out" / "selected_classes.csv")
    assert {r["name"] for r in rows} <= set(vocabulary)
    assert len(rows) >= 10 and max(float(r["share_of_batches"]) for r in rows) <= 1
    assert sum(int(r["times_selected"]) for r in rows) == 10 * trainer.objective.selection.batches
