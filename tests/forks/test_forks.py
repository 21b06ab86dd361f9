"""Trainers of forks learn without labels, by their own steps: by the formula, and without any way to the truth."""

import copy
import functools
import json
import os
import pickle
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import RATE, config, fork_styles
from support.forks import SMALL, build, check_resumed, encode_few_sentences, learned

import kdpl
import kdpl.trainers
from kdpl.clip.loading import load_clip
from kdpl.clip.weights import openai_clip
from kdpl.text.templates import template_for
from kdpl.trainers.wrapped import FILE, DistilledTrainer

ONE_EPOCH = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1)
CLASSES, SHOTS = 6, 3


@pytest.fixture
def few_sentences(monkeypatch):
    encode_few_sentences(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("style", fork_styles.STYLES)
def test_a_trainer_of_any_style_learns_without_labels_and_says_what_they_were_used_for(style, tmp_path, capsys, few_sentences):
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


@pytest.fixture
def double(monkeypatch):
    """All computes in double precision, where rounding does not show."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch.nn.Module, "float", torch.nn.Module.double)
    monkeypatch.setattr(openai_clip().model.LayerNorm, "forward", torch.nn.LayerNorm.forward)  # without its cast to fp32
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["StyleCoOp", "StyleMaPLe"])
def test_loss_and_gradients_of_what_is_learned_are_those_of_the_formula(style, tmp_path, double):
    """With a teacher and a loss computed here, from CLIP's own functions."""
    trainer = build(f"KDPL_{style}", tmp_path)
    trainer.set_model_mode("train")
    trainer.num_batches, trainer.batch_idx, batch = 100, 0, next(iter(trainer.train_loader_x))
    teacher, model = load_clip("emoji_teacher", device=trainer.device), trainer.model
    images = batch["img"].to(trainer.device)
    with torch.no_grad():
        sentence, names = template_for("EmojiMeals", ""), trainer.dm.dataset.classnames
        text = teacher.model.encode_text(teacher.tokenizer([sentence.format(name) for name in names]))
        t = (F.normalize(teacher.model.encode_image(images)) @ F.normalize(text).t() * model.logit_scale.exp()).double()
    logits = model.similarity(*model.features(images))
    s, t = logits.double().log_softmax(1), t.log_softmax(1)
    expected = 0.5 * (t.exp() * (t - s) + s.exp() * (s - t)).sum(1).mean()
    parameters = [p for p in model.parameters() if p.requires_grad]
    exact = torch.autograd.grad(expected, parameters)
    assert trainer.forward_backward(batch)["loss"] == pytest.approx(expected.item(), rel=1e-9)
    for p, gradient in zip(parameters, exact, strict=True):
        assert (p.grad - gradient).norm() / gradient.norm() < 1e-9


# ------------------------------------------------------------------------------------------------------------- no truth

_kept_by_the_module = []


@pytest.fixture
def keeping():
    """A data set that keeps its truth in many places; `permute` gives the drawn images other true labels."""
    from dassl.data.datasets import DATASET_REGISTRY, Datum

    from kdpl.datasets.base import ClassListDataset
    from kdpl.datasets.emoji.scenes import EmojiMeals

    @functools.lru_cache
    def split(cls):
        made = EmojiMeals(config("KDPL_CoOp", "emoji_meals", "/tmp/none", *SMALL, "DATASET.NUM_SHOTS", SHOTS + 1))
        groups = ([d for d in items if d.label < CLASSES] for items in (made.train_x, made.val, made.test))
        return *groups, {d.label: d.classname for d in made.train_x if d.label < CLASSES}

    class EmojiKeeping(ClassListDataset):
        permute = False
        targets = None

        def __init__(self, cfg):
            train, val, test, names = split(type(self))
            _kept_by_the_module[:] = train  # before the shots are drawn
            random.seed(cfg.SEED)
            train = self.generate_fewshot_dataset(train, num_shots=SHOTS)
            if self.permute:  # all labels, or a lookup by path would tell the truth
                train, val, test = (
                    [Datum(d.impath, j := (d.label * 5 + 1) % CLASSES, d.domain, names[j]) for d in items]
                    for items in (train, val, test)
                )
            train.sort(key=lambda d: d.label)  # as Dassl draws: the place in the list tells the class
            super().__init__(names, train, val, test)
            self.everything = [*train, *test]
            self.labels = [d.label for d in train]
            self.array = np.array(self.labels)
            self.by_class = {}
            for d in train:
                self.by_class.setdefault(d.label, []).append(d.impath)
            type(self).targets = torch.tensor(self.labels)
            self.file = os.path.join(cfg.OUTPUT_DIR, "items.pkl")
            with open(self.file, "wb") as file:
                pickle.dump(train, file)

    DATASET_REGISTRY.register(EmojiKeeping, force=True)
    return EmojiKeeping


def _labels_of(items):
    return torch.tensor([item.label for item in items])


def _again(trainer):
    """Return the items of a file that the data set wrote, by path: their order there is the data set's own."""
    with open(trainer.dm.dataset.file, "rb") as file:
        return sorted(pickle.load(file), key=lambda item: item.impath)


def _manager(trainer):
    from dassl.data import DataManager

    return DataManager(trainer.cfg)


PLACES = {
    "train_x": lambda t: _labels_of(t.dm.dataset.train_x),
    "class names": lambda t: torch.tensor([len(i.classname) for i in t.dm.dataset.train_x]),
    "the place in the list": lambda t: torch.tensor([hash(i.impath) % 997 * n for n, i in enumerate(t.dm.dataset.train_x)]),
    "val": lambda t: _labels_of(t.dm.dataset.val),
    "test": lambda t: _labels_of(t.dm.dataset.test),
    "the validation loader": lambda t: torch.cat([batch["label"] for batch in t.val_loader]),
    "another list": lambda t: _labels_of(t.dm.dataset.everything),
    "a copy": lambda t: _labels_of(copy.deepcopy(t.dm.dataset.train_x)),
    "a list of the module": lambda t: _labels_of(_kept_by_the_module),
    "numbers": lambda t: torch.tensor(t.dm.dataset.labels),
    "an array": lambda t: torch.tensor(t.dm.dataset.array),
    "a tensor of the class": lambda t: type(t.dm.dataset).targets,
    "paths by class": lambda t: torch.tensor(
        [c * hash(p) % 997 * n for c, paths in t.dm.dataset.by_class.items() for n, p in enumerate(paths)]
    ),
    "a pickle": lambda t: _labels_of(_again(t)),
    "another manager": lambda t: torch.cat([b["label"] for b in _manager(t).train_loader_x]),
    "another data set": lambda t: _labels_of(type(t.dm.dataset)(t.cfg).train_x),
    "prototypes": lambda t: torch.stack(
        [torch.tensor([len(i.impath) for i in t.dm.dataset.train_x if i.label == c]).sum() for c in range(CLASSES)]
    ),
}


@pytest.mark.parametrize("place", PLACES)
def test_no_place_has_the_truth(place, keeping, tmp_path):
    """What a trainer finds is the same with other true labels, and what it learns from that is."""

    class Reads(fork_styles.StyleCoOp):
        def build_model(self):
            super().build_model()
            self.found = PLACES[place](self)

    found = []
    for permute in (False, True):
        keeping.permute = permute
        (tmp_path / str(permute)).mkdir()
        options = ("DATASET.NAME", "EmojiKeeping", "DATASET.TEMPLATE", "a photo of a {}.", *ONE_EPOCH)
        name = kdpl.trainers.distilled(Reads).__name__
        found.append(build(name, tmp_path / str(permute), *options, file="KDPL_CoOp").found)
    assert torch.equal(*found) and len(found[0]) >= CLASSES
    keeping.permute = False


class OneHot(fork_styles.StyleCoOp):
    """A cross-entropy, and a second loss by hand with one-hot labels."""

    def step(self, images, labels):
        logits = self.model(images)
        by_hand = -(F.one_hot(labels, logits.shape[1]) * logits.log_softmax(1)).sum(1).mean()
        loss = F.cross_entropy(logits, labels, label_smoothing=0.1) + 0.1 * by_hand
        self.model_backward_and_update(loss)
        return loss, logits, labels


class Banked(fork_styles.StyleCoOp):
    """Prototypes of train_x and a memory of labels, and a test before the training."""

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


@pytest.mark.slow
@pytest.mark.parametrize("fork_class", [OneHot, Banked, fork_styles.StyleCoOp, fork_styles.StyleProbe, fork_styles.StyleMixup])
def test_other_true_labels_change_nothing_bit_for_bit(fork_class, keeping, tmp_path):
    results, accuracies = [], []
    for permute in (False, True):
        keeping.permute = permute
        (tmp_path / str(permute)).mkdir()
        options = ("DATASET.NAME", "EmojiKeeping", "DATASET.TEMPLATE", "a photo of a {}.", "DATALOADER.NUM_WORKERS", 2)
        name = kdpl.trainers.distilled(type(fork_class.__name__, (fork_class,), {}), name="KDPL_Made").__name__
        trainer = build(name, tmp_path / str(permute), *options, *ONE_EPOCH, file="KDPL_CoOp")
        start = learned(trainer)
        trainer.train()
        results.append(learned(trainer))
        accuracies.append(trainer.test())
        assert [item.label for item in trainer.dm.dataset.test] != [item.label for item in trainer.dm.dataset.val]
    assert all(torch.equal(v, results[0][k]) and not torch.equal(v, start[k]) for k, v in results[1].items())
    assert accuracies[0] != accuracies[1], "a test has the truth"
    keeping.permute = False


@pytest.mark.slow
def test_items_have_the_teachers_class_and_a_test_the_truth(tmp_path):
    """Against the teacher's own answers, with the test transform; the accuracy against the split's true labels."""
    from dassl.data.transforms import build_transform

    from kdpl.datasets.emoji.scenes import EmojiMeals
    from kdpl.training.pixels import read_image

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


# ----------------------------------------------------------------------------------- what Dassl alone has, and what is refused


def test_a_sampler_by_class_takes_the_teachers_classes(tmp_path):
    """Also if it finds no image of some class."""
    samplers = pytest.importorskip("dassl.data.samplers")
    if not hasattr(samplers, "RandomClassSampler"):
        pytest.skip("the bundled engine has no RandomClassSampler")
    options = ("DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler", "DATALOADER.TRAIN_X.N_INS", 2)
    trainer = build("KDPL_StyleCoOp", tmp_path, *options, "DATALOADER.TRAIN_X.BATCH_SIZE", 8, *ONE_EPOCH)
    sampler = trainer.train_loader_x.sampler
    assert set(sampler.index_dic) == {item.label for item in trainer.dm.dataset.train_x} and len(sampler.index_dic) < 30
    trainer.train()


def test_a_trainer_of_two_batches_has_both_in_its_loss(tmp_path):
    engine = pytest.importorskip("dassl.engine")
    if not hasattr(engine, "TrainerXU"):
        pytest.skip("the bundled engine has no TrainerXU")

    class Both(fork_styles.Style, engine.TrainerXU):
        def build_data_loader(self):
            super().build_data_loader()
            self.train_loader_u = self.train_loader_x

        run_epoch = engine.TrainerXU.run_epoch

        def forward_backward(self, batch_x, batch_u):
            logits = self.model(torch.cat([batch_x["img"], batch_u["img"]]).to(self.device))
            loss = F.cross_entropy(logits, torch.cat([batch_x["label"], batch_u["label"]]).to(self.device))
            self.model_backward_and_update(loss)
            return {"loss": loss.item()}

    name = kdpl.trainers.distilled(Both).__name__
    trainer = build(name, tmp_path, *ONE_EPOCH, "TRAIN.COUNT_ITER", "train_x", file="KDPL_CoOp")
    before = learned(trainer)
    trainer.train()
    assert trainer._kdpl_distilled and any(not torch.equal(v, learned(trainer)[k]) for k, v in before.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.KDPL.TEMPERATURE", 0.0), "TRAINER.KDPL.TEMPERATURE"),
        (("TRAINER.KDPL.CLASS_AGNOSTIC", True), "bound to the class names"),
        (("TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", False), "chooses by labels of validation images"),
        (("TRAINER.KDPL.LOSS", "kl"), "TRAINER.KDPL.LOSS 'kl'"),
        (("TRAINER.KDPL.TEACHER", "ViT-Z"), "ViT-Z"),
    ],
)
def test_what_a_wrapped_trainer_cannot_do_is_refused_before_anything_is_loaded(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build("KDPL_StyleCoOp", tmp_path, *options)


@pytest.mark.parametrize(("frequency", "epoch"), [(0, 1), (1, 0)])
def test_a_trainer_without_cross_entropy_or_images_is_refused(frequency, epoch, tmp_path, capsys):
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
    with pytest.raises(ValueError, match="trains on batches without 'img' and 'label'"):
        trainer.forward_backward({"text": torch.zeros(1)})


def test_a_test_before_the_last_epoch_is_said_with_its_split(tmp_path, capsys):
    class Chooses(fork_styles.StyleCoOp):
        def after_epoch(self):
            self.test("val")
            super().after_epoch()

    name = kdpl.trainers.distilled(Chooses).__name__
    trainer = build(name, tmp_path, "OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", False, file="KDPL_CoOp")
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


def test_a_clip_of_the_forks_own_is_never_the_teachers(tmp_path, monkeypatch):
    """PLOT's `clip/model.py` gives several features for each image, by a `build_model` with one argument, as OpenAI's."""
    (tmp_path / "clip").mkdir()
    for name in ("__init__", "clip", "model", "simple_tokenizer"):
        (tmp_path / "clip" / f"{name}.py").write_text("def build_model(state_dict):\n    raise SystemExit('the fork\\'s')\n")
    (tmp_path / "clip" / "__init__.py").write_text("from . import clip\n")
    monkeypatch.syspath_prepend(tmp_path)

    assert load_clip("emoji_teacher", device=torch.device("cpu")).frozen_image_features(torch.zeros(1, 3, 64, 64)).dim() == 2


def test_logits_of_another_shape_are_refused(tmp_path):
    trainer = build("KDPL_StyleCoOp", tmp_path)
    teacher = trainer._kdpl_teacher
    with pytest.raises(ValueError, match=r"image features \(5, 2, \d+\)"):
        teacher.logits(torch.zeros(5, 2, teacher.text_features.shape[1]), torch.tensor(1.0))


# --------------------------------------------------------------------------------------- registry, decorators, own names


def test_any_registered_name_can_be_asked_for_and_kdpls_own_stay(monkeypatch, capsys):
    import sys

    from dassl.engine import TRAINER_REGISTRY, TrainerX

    from kdpl.trainers import distilled, offer_distilled

    offer_distilled()
    assert {f"KDPL_{style}" for style in fork_styles.STYLES} <= set(TRAINER_REGISTRY.registered_names())
    assert TRAINER_REGISTRY.get("KDPL_StyleProbe").__mro__[1:3] == (DistilledTrainer, fork_styles.StyleProbe)

    class CoOp(fork_styles.StyleCoOp):
        pass

    assert distilled(CoOp) is kdpl.trainers.KDPL_CoOp is TRAINER_REGISTRY.get("KDPL_CoOp")
    assert distilled(CoOp, name="Wrapped_CoOp").__mro__[2] is CoOp is not TRAINER_REGISTRY.get("KDPL_CoOp")

    @distilled(teacher_view=1)
    class Later(fork_styles.StyleViews):
        pass

    assert TRAINER_REGISTRY.get("KDPL_Later") is Later and Later.teacher_view == 1
    TRAINER_REGISTRY.register(type("KDPL_Theirs", (fork_styles.Style,), {}), force=True)
    with pytest.raises(ValueError, match="KDPL_Theirs is a trainer of"):
        distilled(type("Theirs", (fork_styles.Style,), {}))
    for wrong in (kdpl.trainers.KDPL_CoOp, Later, TrainerX, str):
        with pytest.raises(TypeError, match="cannot be distilled"):
            distilled(wrong)
    TRAINER_REGISTRY.register(type("NoStep", (TrainerX,), {"__module__": __name__}), force=True)
    monkeypatch.setattr(sys, "argv", ["train.py", "--trainer", "KDPL_NoStep"])
    with pytest.raises(SystemExit, match=r"NoStep cannot learn without labels: it has no forward_backward\(batch\)"):
        offer_distilled()


@pytest.mark.parametrize("warmup", ["constant", "linear"])
def test_a_warm_up_works_with_the_trainers_own_code(warmup, tmp_path, monkeypatch):
    """Also where the name is bound to a scheduler that stops, as an installed Dassl's does on today's PyTorch."""
    import dassl.optim

    def stops(optimizer, cfg):
        raise TypeError("LRScheduler.__init__() takes from 2 to 3 positional arguments but 4 were given")

    monkeypatch.setattr(dassl.optim, "build_lr_scheduler", stops)
    monkeypatch.setattr(fork_styles, "build_lr_scheduler", stops)
    trainer = build("KDPL_StyleCoOp", tmp_path, "OPTIM.WARMUP_TYPE", warmup, "OPTIM.MAX_EPOCH", 3)
    rates = []
    for _ in range(3):
        rates.append(trainer.get_current_lr())
        trainer.optim.step()
        trainer.update_lr()
    assert rates == pytest.approx([1e-5, RATE, RATE * 0.75])
    assert fork_styles.build_lr_scheduler is stops


# ------------------------------------------------------------------------------------------------- resuming, and teachers


@pytest.mark.slow
@pytest.mark.parametrize("style", ["StyleCoOp", "StyleMaPLe"])
def test_a_run_that_stops_after_an_epoch_is_resumed_bit_identical(style, tmp_path):
    check_resumed(style, tmp_path)


TWO = ("TRAINER.KDPL.TEACHER", "emoji_teacher + emoji_student")


@pytest.mark.slow
def test_a_run_with_labels_or_of_another_seed_or_teacher_is_not_resumed(tmp_path):
    from kdpl.training.checkpoint import CheckpointError

    build("StyleCoOp", tmp_path / "a", *ONE_EPOCH).train()
    with pytest.raises(CheckpointError, match="as of a training with labels"):
        build("KDPL_StyleCoOp", tmp_path / "a", *ONE_EPOCH).train()
    build("KDPL_StyleCoOp", tmp_path / "b", *ONE_EPOCH).train()
    for options, seed, message in (
        ((), 2, "seed 1, now 2"),
        (TWO, 1, "teacher '"),
        (("TRAINER.KDPL.TEMPERATURE", 2.0), 1, r"TRAINER.KDPL.TEMPERATURE 1.0, now 2.0"),
    ):
        with pytest.raises(CheckpointError, match=message):
            build("KDPL_StyleCoOp", tmp_path / "b", *ONE_EPOCH, *options, seed=seed).train()


@pytest.mark.slow
def test_a_trainer_learns_from_the_mean_of_several_teachers(tmp_path):
    trainer = build("KDPL_StyleCoOp", tmp_path, *TWO, "TRAINER.KDPL.TEMPERATURE", 2.0)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(trainer.device)
    teacher, scale = trainer._kdpl_teacher, trainer._kdpl_log_scale.exp()
    expected = sum((m.logits(m.image_features(images), scale).double() / 2).softmax(-1) for m in teacher.members) / 2
    found = (trainer._kdpl_logits(images).double() / 2).softmax(-1)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
