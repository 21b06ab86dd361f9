"""Trainers of forks learn without labels, by their own steps: by the formula, and without any way to the truth."""

import functools
import json
import operator
import os
import pickle
import random
from pathlib import Path

import dassl.engine
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dassl.data import DataManager
from dassl.engine import TRAINER_REGISTRY, TrainerX
from support import RATE, config, fork_styles
from support.forks import SMALL, build, learned
from support.trainings import stop_after

import kdpl
import kdpl.trainers
from kdpl.clip.loading import load_clip
from kdpl.text.templates import template_for
from kdpl.trainers import distilled
from kdpl.trainers.wrapped import FILE, DistilledTrainer

ONE_EPOCH = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1)
CLASSES, SHOTS = 6, 3


@pytest.mark.slow
@pytest.mark.parametrize("style", fork_styles.STYLES)
def test_a_trainer_of_any_style_learns_without_labels_and_says_what_they_were_used_for(style, tmp_path, capsys):
    if style == "StyleViews" and "bundled" in kdpl.dassl_in_use():
        pytest.skip("the bundled engine gives one view of an image")
    trainer = build(f"KDPL_{style}", tmp_path)
    assert isinstance(trainer, DistilledTrainer) and isinstance(trainer, getattr(fork_styles, style))
    before = learned(trainer)
    trainer.train()
    assert all(not torch.equal(v, learned(trainer)[k]) for k, v in before.items())
    said = [line for line in capsys.readouterr().out.splitlines() if "labels were used for" in line]
    assert len(said) == 1 and " x cross-entropy: the divergence" in said[0]
    record = json.loads((tmp_path / FILE).read_text())
    assert record["seed"] == 1 and record["trainer"] == style and record["labels were used for"] in said[0]


@pytest.mark.slow
def test_loss_and_gradient_of_what_is_learned_are_those_of_the_formula(tmp_path):
    """With a teacher and a loss computed here, from CLIP's own functions."""
    trainer = build("KDPL_StyleCoOp", tmp_path)
    trainer.set_model_mode("train")
    trainer.num_batches, trainer.batch_idx, batch = 100, 0, next(iter(trainer.train_loader_x))
    teacher, model, images = load_clip("emoji_teacher", device=trainer.device), trainer.model, batch["img"].to(trainer.device)
    with torch.no_grad():
        sentences = [template_for("EmojiMeals", "").format(name) for name in trainer.dm.dataset.classnames]
        text = F.normalize(teacher.model.encode_text(teacher.tokenizer(sentences)))
        t = F.normalize(teacher.model.encode_image(images)) @ text.t() * model.logit_scale.exp()
    s, t = model(images).double().log_softmax(1), t.double().log_softmax(1)
    expected = 0.5 * (t.exp() * (t - s) + s.exp() * (s - t)).sum(1).mean()
    (exact,) = torch.autograd.grad(expected, model.learner.ctx)
    assert trainer.forward_backward(batch)["loss"] == pytest.approx(expected.item(), rel=1e-6)
    assert (model.learner.ctx.grad - exact).norm() / exact.norm() < 1e-5


# ------------------------------------------------------------------------------------------------------------- no truth

_kept_by_the_module = []
_label = operator.attrgetter("label")


@pytest.fixture(scope="module")
def keeping():
    """A data set that keeps its truth in many places; `permute` gives the drawn images other true labels."""
    from dassl.data.datasets import DATASET_REGISTRY, Datum

    from kdpl.datasets.base import ClassListDataset
    from kdpl.datasets.emoji.scenes import EmojiMeals

    @functools.lru_cache
    def split(cls):
        made = EmojiMeals(config("KDPL_CoOp", "emoji_meals", "/tmp/none", *SMALL, "DATASET.NUM_SHOTS", SHOTS))
        groups = (sorted((d for d in x if d.label < CLASSES), key=_label) for x in (made.train_x, made.val, made.test))
        return *groups, {d.label: d.classname for d in made.train_x if d.label < CLASSES}

    class EmojiKeeping(ClassListDataset):
        permute = False
        targets = None

        def __init__(self, cfg):
            *splits, names = split(type(self))
            if self.permute:  # all labels, or a lookup by path would tell the truth; as many of each class
                splits = ([Datum(d.impath, c := i % CLASSES, d.domain, names[c]) for i, d in enumerate(x)] for x in splits)
            train, val, test = splits
            _kept_by_the_module[:] = train  # before the shots are drawn
            self.file = os.path.join(cfg.OUTPUT_DIR, "items.pkl")
            random.seed(cfg.SEED)
            train = self.generate_fewshot_dataset(train, num_shots=SHOTS)
            Path(self.file).write_bytes(pickle.dumps(train))
            train.sort(key=lambda d: hash((d.label, d.impath)))  # the place in the list tells of the class
            super().__init__(names, train, val, test)
            self.everything = [*train, *test]
            self.labels = [d.label for d in train]
            self.array = np.array(self.labels)
            self.by_class = {c: [d.impath for d in train if d.label == c] for c in range(CLASSES)}
            type(self).targets = torch.tensor(self.labels)

    DATASET_REGISTRY.register(EmojiKeeping, force=True)
    return EmojiKeeping


def _labels_of(items):
    return torch.tensor([item.label for item in items])


def _of_pickle(items):
    return torch.tensor([item.label * hash(item.impath) % 997 for item in items])


PLACES = {
    "train_x": lambda t: _labels_of(t.dm.dataset.train_x),
    "the place in the list": lambda t: torch.tensor([hash(i.impath) % 997 * n for n, i in enumerate(t.dm.dataset.train_x)]),
    "val": lambda t: _labels_of(t.dm.dataset.val),
    "test": lambda t: _labels_of(t.dm.dataset.test),
    "another list": lambda t: _labels_of(t.dm.dataset.everything),
    "a list of the module": lambda t: _labels_of(_kept_by_the_module),
    "numbers": lambda t: torch.tensor(t.dm.dataset.labels),
    "an array": lambda t: torch.tensor(t.dm.dataset.array),
    "a tensor of the class": lambda t: type(t.dm.dataset).targets,
    "paths by class": lambda t: torch.tensor(
        [c * hash(p) % 997 * n for c, paths in t.dm.dataset.by_class.items() for n, p in enumerate(paths)]
    ),
    "a pickle": lambda t: _of_pickle(pickle.loads(Path(t.dm.dataset.file).read_bytes())),  # as DAPT reads one
    "another manager": lambda t: torch.cat([b["label"] for b in DataManager(t.cfg).train_loader_x]),
}
MADE = ("DATASET.NAME", "EmojiKeeping", "DATASET.TEMPLATE", "a photo of a {}.", *ONE_EPOCH)


def with_either_truth(keeping, trainer_class, folder, *options):
    """Yield the trainer without labels on the data set with its labels, and with others."""
    name = distilled(type(trainer_class.__name__, (trainer_class,), {}), name="KDPL_Made").__name__
    for keeping.permute in (False, True):
        (folder / str(keeping.permute)).mkdir()
        yield build(name, folder / str(keeping.permute), *MADE, *options)
    keeping.permute = False


class Reads(fork_styles.StyleCoOp):
    def build_model(self):
        super().build_model()
        self.found = {place: read(self) for place, read in PLACES.items()}


@pytest.fixture(scope="module")
def found(keeping, tmp_path_factory):
    """What a trainer finds in each place while it is built, with the labels of the data set and with others."""
    return [trainer.found for trainer in with_either_truth(keeping, Reads, tmp_path_factory.mktemp("places"))]


@pytest.mark.parametrize("place", PLACES)
def test_no_place_has_the_truth(place, found):
    assert torch.equal(found[0][place], found[1][place]) and len(found[0][place]) >= CLASSES


class ByHand(fork_styles.StyleCoOp):
    """A cross-entropy, and one by hand with one-hot labels."""

    def step(self, images, labels):
        logits = self.model(images)
        by_hand = -(F.one_hot(labels, logits.shape[1]) * logits.log_softmax(1)).sum(1).mean()
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1) + 0.1 * by_hand
        self.model_backward_and_update(loss)
        return loss, logits, labels


class Banked(fork_styles.StyleCoOp):
    """Class counts of train_x, a memory of labels, and batches of a second DataManager."""

    def build_data_loader(self):
        super().build_data_loader()
        self.train_loader_x = DataManager(self.cfg).train_loader_x

    def build_model(self):
        super().build_model()
        self.counts = torch.bincount(_labels_of(self.dm.dataset.train_x), minlength=CLASSES).float()
        self.bank = torch.zeros(64, dtype=torch.long)

    def step(self, images, labels):
        self.bank[: len(labels)] = labels
        logits = self.model(images)
        weights = 1 / (1 + self.counts[self.bank[: len(labels)]])
        loss = (F.cross_entropy(logits, labels, reduction="none") * weights).mean()
        self.model_backward_and_update(loss)
        return loss, logits, labels


class TwoBatches(fork_styles.Style, getattr(dassl.engine, "TrainerXU", TrainerX)):
    run_epoch = getattr(dassl.engine, "TrainerXU", TrainerX).run_epoch

    def build_data_loader(self):
        super().build_data_loader()
        self.train_loader_u = self.train_loader_x

    def forward_backward(self, batch_x, batch_u):
        logits = self.model(torch.cat([batch_x["img"], batch_u["img"]]).to(self.device))
        loss = F.cross_entropy(logits, torch.cat([batch_x["label"], batch_u["label"]]).to(self.device))
        self.model_backward_and_update(loss)
        return {"loss": loss.item()}


BY_CLASS = ("DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler", "DATALOADER.TRAIN_X.N_INS", 2)
BY_CLASS += ("DATALOADER.TRAIN_X.BATCH_SIZE", 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer_class", "needs_dassl", "options"),
    [
        (ByHand, False, ("DATALOADER.NUM_WORKERS", 2)),
        (Banked, False, ()),
        (fork_styles.StyleMixup, False, ()),
        (TwoBatches, True, ("TRAIN.COUNT_ITER", "train_x")),
        (fork_styles.StyleCoOp, True, BY_CLASS),
    ],
)
def test_other_true_labels_change_nothing_bit_for_bit(trainer_class, needs_dassl, options, keeping, tmp_path):
    if needs_dassl and "bundled" in kdpl.dassl_in_use():
        pytest.skip("the bundled engine has neither TrainerXU nor samplers by class")
    results, accuracies = [], []
    for trainer in with_either_truth(keeping, trainer_class, tmp_path, *options):
        start = learned(trainer)
        trainer.train()
        results.append(learned(trainer))
        accuracies.append(trainer.test())
    assert all(torch.equal(v, results[0][k]) and not torch.equal(v, start[k]) for k, v in results[1].items())
    assert accuracies[0] != accuracies[1], "a test has the truth"


@pytest.mark.slow
def test_items_have_the_teachers_class_and_a_test_the_truth(tmp_path):
    """Against the teacher's own answers, with the test transform; the accuracy against the split's true labels."""
    from dassl.data.transforms import build_transform

    from kdpl.datasets.emoji.scenes import EmojiMeals
    from kdpl.training.batches import read_image

    trainer = build("KDPL_StyleCoOp", tmp_path, "DATALOADER.NUM_WORKERS", 2)
    dataset, transform = trainer.dm.dataset, build_transform(trainer.cfg, is_train=False)
    teacher = trainer._kdpl_teacher
    for items in (dataset.train_x, dataset.test[:50]):
        images = torch.stack([transform(read_image(item.impath)) for item in items]).to(trainer.device)
        expected = teacher.logits(teacher.image_features(images), torch.tensor(100.0)).argmax(1).tolist()
        assert [item.label for item in items] == expected
        assert [item.classname for item in items] == [dataset.classnames[label] for label in expected]
        assert not any({"_label", "_classname"} & set(getattr(item, "__dict__", ())) for item in items)
    truth = {item.impath: item.label for item in EmojiMeals(trainer.cfg).test}
    trainer.set_model_mode("eval")
    with torch.no_grad():
        right = [(trainer.model(b["img"]).argmax(1).tolist(), b["impath"]) for b in trainer.test_loader]
    right = [p == truth[path] for ps, paths in right for p, path in zip(ps, paths, strict=True)]
    assert trainer.test() == pytest.approx(100 * sum(right) / len(right))


@pytest.mark.slow
def test_random_shots_are_drawn_whatever_the_labels(tmp_path):
    """The trainer's name, by which the data set would know, is the fork's."""
    items = build("KDPL_StyleCoOp", tmp_path, "TRAINER.KDPL.SHOTS", "random", "DATASET.NUM_SHOTS", 2).dm.dataset.train_x
    assert len(items) == 60 and len({os.path.basename(os.path.dirname(item.impath)) for item in items}) < 30


# ------------------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.KDPL.TEMPERATURE", 0.0), "TRAINER.KDPL.TEMPERATURE"),
        (("TRAINER.KDPL.CLASS_AGNOSTIC", True), "bound to the class names"),
        (("TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", False), "chooses by labels of validation images"),
    ],
)
def test_what_a_wrapped_trainer_cannot_do_is_refused_before_anything_is_loaded(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build("KDPL_StyleCoOp", tmp_path, *options)


@pytest.mark.parametrize(("frequency", "epoch"), [(0, 1), (1, 0)])
def test_a_trainer_without_cross_entropy_is_refused(frequency, epoch, tmp_path, capsys):
    trainer = build("KDPL_StyleCoOp", tmp_path, "TRAIN.CHECKPOINT_FREQ", frequency)

    def by_hand(images, labels):
        logits = trainer.model(images)
        loss = -logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
        trainer.model_backward_and_update(loss)
        return loss, None, labels

    trainer.step = by_hand
    with pytest.raises(ValueError, match=r"StyleCoOp never called F\.cross_entropy or F\.nll_loss with the batch's labels"):
        trainer.train()
    assert "No cross-entropy with the batch's labels in this step" in capsys.readouterr().out
    assert trainer.epoch == epoch and not (tmp_path / "prompt_learner").exists(), "an error comes before anything is saved"


def test_a_trainer_of_sentences_alone_is_refused_in_its_first_step(tmp_path):
    class OfSentences(fork_styles.StyleCoOp):
        def build_data_loader(self):
            super().build_data_loader()
            self.train_loader_x = torch.utils.data.DataLoader([{"input_text": "a photo", "output_text": "a drawing"}])

    with pytest.raises(ValueError, match="OfSentences trains on batches without 'img' and 'label'"):
        build(distilled(OfSentences).__name__, tmp_path, *ONE_EPOCH).train()


def test_a_test_before_the_last_epoch_is_said_with_its_split(tmp_path, capsys):
    class Chooses(fork_styles.StyleCoOp):
        def after_epoch(self):
            self.test("val")
            super().after_epoch()

    name = distilled(Chooses).__name__
    trainer = build(name, tmp_path, "OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", False)
    trainer.train()
    trainer.test()
    said = capsys.readouterr().out
    assert said.count("tests on the val images before the last epoch, with their true labels") == 1
    assert said.count("before the last epoch") == 1 and said.count("* accuracy") == 4


def test_a_model_without_one_logarithm_of_the_scale_gets_the_teachers_own(tmp_path, capsys):
    trainer = build("KDPL_StyleCoOp", tmp_path)
    trainer.model.logit_scale = trainer.model.clip.logit_scale = None
    assert trainer._kdpl_log_scale.exp() == pytest.approx(float(trainer._kdpl_teacher.clip.logit_scale))
    assert "its model has no logit_scale" in capsys.readouterr().out


# --------------------------------------------------------------------------------------- registry, decorators, own names


def test_kdpls_own_trainers_stay_and_what_is_no_trainer_is_refused():
    class CoOp(fork_styles.StyleCoOp):
        pass

    @distilled(teacher_view=1)
    class Later(fork_styles.StyleViews):
        pass

    assert distilled(CoOp) is kdpl.trainers.KDPL_CoOp is TRAINER_REGISTRY.get("KDPL_CoOp")
    assert distilled(CoOp, name="Wrapped_CoOp").__mro__[1:3] == (DistilledTrainer, CoOp)
    assert TRAINER_REGISTRY.get("KDPL_Later") is Later and Later.teacher_view == 1
    for wrong in (kdpl.trainers.KDPL_CoOp, Later, TrainerX, str):
        with pytest.raises(TypeError, match="cannot be distilled"):
            distilled(wrong)


def test_a_warm_up_works_with_the_trainers_own_code(tmp_path, monkeypatch):
    """Also where the name is bound to a scheduler that stops, as an installed Dassl's does on today's PyTorch."""
    import dassl.optim

    def stops(optimizer, cfg):
        raise TypeError("LRScheduler.__init__() takes from 2 to 3 positional arguments but 4 were given")

    monkeypatch.setattr(dassl.optim, "build_lr_scheduler", stops)
    monkeypatch.setattr(fork_styles, "build_lr_scheduler", stops)
    trainer = build("KDPL_StyleCoOp", tmp_path, "OPTIM.MAX_EPOCH", 3)
    rates = []
    for _ in range(3):
        rates.append(trainer.get_current_lr())
        trainer.optim.step()
        trainer.update_lr()
    assert rates == pytest.approx([1e-5, RATE, RATE * 0.75])
    assert fork_styles.build_lr_scheduler is stops


# ------------------------------------------------------------------------------------------------- resuming, and teachers


@pytest.mark.slow
def test_a_run_that_stops_after_an_epoch_is_resumed_bit_identical(tmp_path):
    unbroken, stopped, resumed = (
        build("KDPL_StyleCoOp", tmp_path / name, "OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1) for name in "abb"
    )
    unbroken.train()
    stop_after(stopped, epoch=1)
    resumed.train()
    assert resumed.start_epoch == 2
    assert all(torch.equal(v, learned(resumed)[k]) for k, v in learned(unbroken).items())


@pytest.mark.slow
def test_a_run_with_labels_or_of_another_seed_or_teacher_is_not_resumed(tmp_path):
    from kdpl.training.checkpoint import CheckpointError

    build("StyleCoOp", tmp_path / "a", *ONE_EPOCH).train()
    with pytest.raises(CheckpointError, match="as of a training with labels"):
        build("KDPL_StyleCoOp", tmp_path / "a", *ONE_EPOCH).train()
    build("KDPL_StyleCoOp", tmp_path / "b", *ONE_EPOCH).train()
    for options, seed, message in (
        ((), 2, "seed 1, now 2"),
        (("TRAINER.KDPL.TEACHER", "emoji_student"), 1, "teacher '"),
        (("TRAINER.KDPL.TEMPERATURE", 2.0), 1, r"TRAINER.KDPL.TEMPERATURE 1.0, now 2.0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            build("KDPL_StyleCoOp", tmp_path / "b", *ONE_EPOCH, *options, seed=seed).train()
