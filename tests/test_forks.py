"""Trainers of forks learn without labels, by their own steps: the wrapped ones are KDPL's to 1e-9, and honest."""

import os
import re
from types import SimpleNamespace

import clip.model
import fork_styles
import pytest
import torch
from support import RATE, config
from support.forks import ALLOW_LOOKUPS, NODES, SMALL, build, check_learns, check_resumed, encode_few_sentences, learned

import kdpl.trainers
from kdpl.trainers.wrapped import DistilledTrainer


@pytest.fixture
def few_sentences(monkeypatch):
    encode_few_sentences(monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("style", ["StyleCoOp", "StyleViews"])
def test_a_trainer_of_any_style_learns_without_labels(style, tmp_path, capsys):
    """The others: tests/forks/styles.py, and below in other ways."""
    check_learns(style, tmp_path, capsys)


# ------------------------------------------------------------------------------------------- identity with our own trainers


def _promptsrc(name):
    layer = next((part for part in name.split(".") if part.isdigit()), "0")
    return f"{'visual' if name.startswith('image_encoder') else 'text'}.{layer}"


MAPS = {
    "StyleCoOp": lambda name: name,
    "StyleMaPLe": lambda name: name.removeprefix("prompt_learner."),
    "StylePromptSRC": _promptsrc,
}


@pytest.fixture
def double(monkeypatch):
    """Both trainers compute in double precision, where another order of sums does not show on any CPU."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    monkeypatch.setattr(torch.nn.Module, "float", torch.nn.Module.double)
    monkeypatch.setattr(clip.model.LayerNorm, "forward", torch.nn.LayerNorm.forward)  # without its cast to fp32
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize("style", MAPS)
def test_a_wrapped_trainer_is_kdpls_own_to_1e_9(style, tmp_path, double, few_sentences):
    """Losses of each of four steps, and the parameters after them."""
    own_name = NODES.get(style, "KDPL_CoOp")
    options = ("OPTIM.WARMUP_EPOCH", -1, "OPTIM.LR", 0.02, "DATALOADER.TRAIN_X.BATCH_SIZE", 7)
    from dassl.engine import build_trainer
    from support import config as own_config

    own = build_trainer(own_config(own_name, "emoji_meals", tmp_path / "own", "--seed", 1, *SMALL, *options))
    wrapped = build(f"KDPL_{style}", tmp_path / "wrapped", *options)
    theirs = dict(wrapped.model.learner.named_parameters())
    pairs = {name: theirs[MAPS[style](name)] for name in own.student.learned.state_dict()}
    assert len({id(p) for p in pairs.values()}) == len(pairs) == len(theirs)
    with torch.no_grad():
        for name, parameter in pairs.items():
            parameter.copy_(own.student.learned.state_dict()[name])
    start = {name: p.detach().clone() for name, p in pairs.items()}
    for trainer in (own, wrapped):
        trainer.set_model_mode("train")
        trainer.num_batches = 100
    batches = list(own.train_loader_x)[:4]
    assert len(batches) == 4
    for i, batch in enumerate(batches):
        own.batch_idx = wrapped.batch_idx = i
        ours = own.forward_backward(batch)
        their = wrapped.forward_backward({**batch, "img": own.images(batch)})
        loss = float(ours.get("loss_total", ours["loss"]))
        assert their["loss"] == pytest.approx(loss, rel=1e-9)
    for name, parameter in own.student.learned.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-4
        assert torch.allclose(parameter, pairs[name], atol=1e-9), (name, (parameter - pairs[name]).abs().max())


@pytest.mark.slow
def test_the_batches_of_a_seed_are_those_of_kdpls_own_trainer(tmp_path):
    from dassl.engine import build_trainer

    options = ("DATALOADER.TRAIN_X.BATCH_SIZE", 12)
    own = build_trainer(config("KDPL_CoOp", "emoji_meals", tmp_path / "own", "--seed", 1, *SMALL, *options))
    wrapped = build("KDPL_StyleCoOp", tmp_path / "wrapped", *options)
    for trainer in (own, wrapped):
        trainer.epoch = trainer.train_loader_x.epoch = 1
    for a, b in zip(own.train_loader_x, wrapped.train_loader_x, strict=True):
        assert torch.equal(own.images(a).cpu(), b["img"].cpu())  # paths, which name the class, are hidden from the wrapped one


# ------------------------------------------------------------------------------------------------------------- honesty


@pytest.mark.slow
@pytest.mark.parametrize("style", ["StyleCoOp", "StyleProbe", "StyleSurgery"])
def test_other_true_labels_change_nothing_bit_for_bit(style, tmp_path, permuted):
    options = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1, *(ALLOW_LOOKUPS if style == "StyleProbe" else ()))
    results = []
    for name in ("a", "b"):
        permuted.append(name == "b")
        trainer = build(f"KDPL_{style}", tmp_path / name, *options)
        start = learned(trainer)
        trainer.train()
        results.append(learned(trainer))
    assert all(torch.equal(v, results[0][k]) for k, v in results[1].items())
    assert any(not torch.equal(start[k], v) for k, v in results[1].items())


@pytest.mark.slow
def test_random_shots_of_a_wrapped_trainer_are_drawn_whatever_the_labels(tmp_path, permuted):
    """The trainer's name, by which the data set would know, is the fork's."""
    from collections import Counter

    from kdpl.datasets.emoji.scenes import EmojiMeals, scenes_of

    label_of = {scene.path: scene.label for scene in scenes_of(EmojiMeals.plan_name)}
    drawn = []
    for name in ("a", "b"):
        permuted.append(name == "b")
        trainer = build("KDPL_StyleCoOp", tmp_path / name, "TRAINER.KDPL.SHOTS", "random", "DATASET.NUM_SHOTS", 2)
        folder = trainer.dm.dataset.dataset_dir
        drawn.append([os.path.relpath(os.fspath(item.impath), folder) for item in trainer.dm.dataset.train_x])
    assert drawn[0] == drawn[1] and len(drawn[0]) == 60
    assert len(set(Counter(label_of[path] for path in drawn[0]).values())) > 1, "not as many of each class"


@pytest.fixture
def permuted(monkeypatch):
    """A list whose last entry says whether the data set has other true labels, by what its constructor makes."""
    from kdpl.datasets.emoji import scenes

    said, plain = [], scenes.subsample_classes

    def subsample_classes(*args):
        splits, kept = plain(*args)
        if said and said[-1]:
            names = {d.label: d.classname for d in splits[0]}
            splits = [[type(d)(d.impath, j := (d.label * 7 + 3) % 30, d.domain, names[j]) for d in s] for s in splits]
        return splits, kept

    monkeypatch.setattr(scenes, "subsample_classes", subsample_classes)
    return said


@pytest.mark.slow
def test_a_trainer_finds_no_trace_of_the_truth(tmp_path):
    from kdpl.distill.pseudo_labels import PseudoLabels, UnsupportedStepError

    trainer = build("KDPL_StyleCoOp", tmp_path, "OPTIM.MAX_EPOCH", 1)
    seen = []
    trainer.step = lambda images, labels: seen.append(labels) or fork_styles.StyleCoOp.step(trainer, images, labels)
    parse = trainer.parse_batch_train

    def looking(batch):
        assert sorted(batch) == ["domain", "img", "label"]
        for key in ("impath", "index"):
            assert batch.get(key) is None
            with pytest.raises(UnsupportedStepError, match=rf"reads batch\['{key}'\]"):
                batch[key]
        return parse(batch)

    trainer.parse_batch_train = looking
    trainer.train()
    assert all(isinstance(labels, PseudoLabels) for labels in seen) and seen
    dataset = trainer.dm.dataset
    items = [*dataset.train_x, *trainer.train_loader_x.dataset.data_source, *dataset.val, *dataset.test]
    for item in items:
        assert os.path.isfile(item.impath) and item.domain >= 0
        for read in (lambda item: int(item.label), lambda item: str(item.classname), lambda item: str(item.impath),
                     lambda item: {item.label: 1}, lambda item: item.label == 3, lambda item: os.path.basename(item.impath),
                     lambda item: item.impath.split("/"), lambda item: torch.zeros(5)[item.label]):  # fmt: skip
            with pytest.raises(UnsupportedStepError, match=r"The trainer reads the .* of an image of (train_x|val|test)"):
                read(item)
    assert len(dataset.classnames) == 30


# How the code of a fork may come by labels: (the step or hook that asks, what it makes of them).


def _labels_of(items):
    return torch.tensor([int(item.label) for item in items])


def _learn(trainer, labels):
    """What a trainer with labels would do: parameters that depend on them."""
    with torch.no_grad():
        trainer.model.learner.ctx.add_(
            labels.float().mul(torch.arange(1.0, 1 + len(labels), device=labels.device)).sum() * 1e-4
        )


class _After(fork_styles.StyleCoOp):
    """Reads what its class says behind build_data_loader, and in build_model."""

    def build_model(self):
        super().build_model()
        _learn(self, self.truth())


class ReadsTheListAfterTheLoaders(_After):
    def build_data_loader(self):
        super().build_data_loader()
        self.found = [item.label for item in self.dm.dataset.train_x]

    def truth(self):
        return torch.tensor([int(label) for label in self.found])


class BuildsAnotherManager(_After):
    def truth(self):
        from dassl.data import DataManager

        return torch.cat([batch["label"] for batch in DataManager(self.cfg).train_loader_x])


class ReadsAnotherReference(_After):
    def truth(self):
        return _labels_of(self.dm.dataset.everything)


class ReadsAReferenceOfTheClass(_After):
    def truth(self):
        return _labels_of(type(self.dm.dataset).kept.items)


class ReadsCountsOfTheDataSet(_After):
    def truth(self):
        return torch.tensor(self.dm.dataset.labels)


class ReadsValidationLabels(fork_styles.StyleCoOp):
    """A product with one-hot labels of the validation images, as Tip-Adapter's cache."""

    def step(self, images, labels):
        batch = next(iter(self.val_loader))
        one_hot = torch.eye(30, device=self.device)[batch["label"].to(self.device)]
        _learn(self, one_hot.argmax(1))
        return super().step(images, labels)


class BuildsTheDataSetItself(_After):
    def truth(self):
        return _labels_of(type(self.dm.dataset)(self.cfg).train_x)


class DefinesADataSetItself(_After):
    def truth(self):
        from kdpl.datasets.emoji.scenes import EmojiMeals

        class Own(EmojiMeals):
            def __init__(self, cfg):
                super().__init__(cfg)
                self.own = [item.label for item in self.train_x]

        return torch.tensor(Own(self.cfg).own)


class ReadsTheNamesOfImages(_After):
    def truth(self):
        names = self.dm.dataset.classnames
        return torch.tensor([names.index(item.classname) for item in self.dm.dataset.train_x])


class ReadsTheFolders(_After):
    def truth(self):
        return torch.tensor([sum(os.path.basename(item.impath).encode()) for item in self.dm.dataset.train_x])


class ReadsAListOfTheClass(_After):
    def truth(self):
        return torch.tensor(type(self.dm.dataset).found)


class ListsTheImagesAgain(_After):
    """By a function of the data set's that makes items from its files, as `read_split` of CoOp's."""

    def truth(self):
        return _labels_of(self.dm.dataset.read_again())


class SearchesInTheTest(fork_styles.StyleCoOp):
    """Chooses a weight by validation images, as Tip-Adapter does, when all is learned."""

    def test(self, split=None):
        self.weight = _labels_of(self.dm.dataset.val).float().mean()
        return super().test(split)


class EvaluatesWhileItTrains(fork_styles.StyleCoOp):
    """Stops at the epoch that is best on the test images."""

    def after_epoch(self):
        super().after_epoch()
        _learn(self, torch.tensor([self.test(split="test")]))


class LearnsBehindTheTest(fork_styles.StyleCoOp):
    def after_train(self):
        _learn(self, torch.tensor([self.test()]))


ASKING = (
    ReadsTheListAfterTheLoaders, BuildsAnotherManager, ReadsAnotherReference, ReadsAReferenceOfTheClass,
    ReadsCountsOfTheDataSet, ReadsValidationLabels, BuildsTheDataSetItself, DefinesADataSetItself, ReadsTheNamesOfImages,
    ReadsTheFolders, ReadsAListOfTheClass, ListsTheImagesAgain, SearchesInTheTest, EvaluatesWhileItTrains, LearnsBehindTheTest,
)  # fmt: skip


@pytest.fixture
def keeping(monkeypatch):
    """A data set that keeps what it has read in several places, registered as EmojiKeeping."""
    from dassl.data.datasets import DATASET_REGISTRY

    from kdpl.datasets.base import ClassListDataset
    from kdpl.datasets.emoji.scenes import EmojiMeals, scenes_of

    class EmojiKeeping(EmojiMeals):
        def __init__(self, cfg):
            super().__init__(cfg)
            ClassListDataset.__init__(self, self.lab2cname, self.train_x, self.val[:8], self.test[:8])
            self.everything = [*self.train_x, *self.test]
            self.labels = [item.label for item in self.train_x]
            type(self).kept = SimpleNamespace(items=self.train_x)
            type(self).found = [item.label for item in self.train_x]

        def read_again(self):
            from dassl.data.datasets import Datum

            path = scenes_of(self.plan_name)[0].path
            return [Datum(os.path.join(self.dataset_dir, path), i, classname="a") for i in range(4)]

    DATASET_REGISTRY.register(EmojiKeeping, force=True)
    return EmojiKeeping.__name__


@pytest.mark.slow
@pytest.mark.parametrize("fork_class", ASKING)
def test_a_trainer_that_asks_for_the_truth_stops_at_the_line_that_asks(fork_class, tmp_path, keeping):
    """With labels the same trainer reads them."""
    from kdpl.distill.pseudo_labels import UnsupportedStepError
    from kdpl.trainers import distilled

    wrapped = distilled(type(fork_class.__name__, (fork_class,), {"__module__": __name__}))
    options = ("DATASET.NAME", keeping, "DATASET.TEMPLATE", "a photo of a {}.", "OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1,
               "TEST.NO_TEST", False)  # fmt: skip
    with pytest.raises(UnsupportedStepError) as error:
        build(wrapped.__name__, tmp_path, *options, file="KDPL_CoOp").train()
    frames = [entry.name for entry in error.traceback if str(entry.path) == __file__]
    assert len(frames) > 1 or "after a test had read labels" in str(error.value)
    from dassl.engine import TRAINER_REGISTRY

    TRAINER_REGISTRY.register(fork_class, force=True)
    with_labels = build(fork_class.__name__, tmp_path / "labels", *options, file="KDPL_CoOp")
    if not issubclass(fork_class, _After):  # these have asked already
        with_labels.train()


@pytest.mark.slow
def test_validation_labels_are_read_where_it_is_allowed_by_name_and_test_labels_in_the_test(tmp_path, capsys):
    from kdpl.config.keys import ConfigError

    options = ("OPTIM.MAX_EPOCH", 1, "TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", False)
    with pytest.raises(ConfigError, match=r"chooses the epoch by the labels of validation images.*KDPL.ALLOW validation"):
        build("KDPL_StyleCoOp", tmp_path, *options)
    build("KDPL_StyleCoOp", tmp_path, *options, "TRAINER.KDPL.ALLOW", "validation").train()
    assert capsys.readouterr().out.count("* accuracy:") == 2


# --------------------------------------------------------------------------------------- registry, decorators, own names


def test_any_registered_name_can_be_asked_for_and_kdpls_own_stay(tmp_path):
    from dassl.engine import TRAINER_REGISTRY, TrainerX

    from kdpl.trainers import distilled, offer_distilled

    offer_distilled()
    assert {f"KDPL_{style}" for style in fork_styles.STYLES} <= set(TRAINER_REGISTRY.registered_names())
    made = TRAINER_REGISTRY.get("KDPL_StyleProbe")
    assert made is TRAINER_REGISTRY.get("KDPL_StyleProbe") and made.__mro__[1:3] == (DistilledTrainer, fork_styles.StyleProbe)

    class CoOp(fork_styles.StyleCoOp):
        pass

    assert distilled(CoOp) is kdpl.trainers.KDPL_CoOp is TRAINER_REGISTRY.get("KDPL_CoOp")
    assert distilled(CoOp, name="Wrapped_CoOp").__mro__[2] is CoOp is not TRAINER_REGISTRY.get("KDPL_CoOp")

    @distilled
    @TRAINER_REGISTRY.register(force=True)
    class Decorated(fork_styles.StyleCoOp):
        pass

    @distilled(teacher_view=1)
    class Later(fork_styles.StyleViews):
        pass

    assert TRAINER_REGISTRY.get("KDPL_Decorated") is Decorated and TRAINER_REGISTRY.get("Decorated") is Decorated.__mro__[2]
    assert TRAINER_REGISTRY.get("KDPL_Later") is Later and Later.teacher_view == 1
    TRAINER_REGISTRY.register(type("KDPL_Theirs", (fork_styles.Style,), {}), force=True)
    with pytest.raises(ValueError, match="KDPL_Theirs is a trainer of"):
        distilled(type("Theirs", (fork_styles.Style,), {}))
    for wrong in (kdpl.trainers.KDPL_CoOp, Later, TrainerX, str):
        with pytest.raises(TypeError, match="cannot be distilled"):
            distilled(wrong)
    with pytest.raises(KeyError):
        TRAINER_REGISTRY.get("KDPL_Nobody")


@pytest.mark.slow
def test_the_trainer_sees_its_own_name_and_node(tmp_path):
    trainer = build("KDPL_StyleCoOp", tmp_path)
    assert trainer.cfg.TRAINER.NAME == "StyleCoOp" and trainer.cfg.TRAINER.COOP.N_CTX == 4


# --------------------------------------------------------------------------------------------- options, views, resuming


@pytest.mark.slow
def test_fixed_views_and_their_cache_give_the_same_as_computing_them(tmp_path, capsys):
    options = ("TRAINER.KDPL.VIEWS", 1, "OPTIM.MAX_EPOCH", 2, "OPTIM.WARMUP_EPOCH", -1)
    plain = build("KDPL_StyleCoOp", tmp_path / "a", *options)
    plain.train()
    cache = ("TRAINER.KDPL.CACHE_DIR", tmp_path / "cache")
    first = build("KDPL_StyleCoOp", tmp_path / "b", *options, *cache)
    first.train()
    again = build("KDPL_StyleCoOp", tmp_path / "c", *options, *cache)
    calls = []
    again.load_for_training()
    again._kdpl_views[0].compute = lambda images: calls.append(len(images))
    again.train()
    assert not calls, "all features come from the cache"
    found = re.findall(r"Features of (\d+) of 30 views found", capsys.readouterr().out)
    assert (int(found[0]), int(found[1])) == (0, 30)
    for other in (first, again):
        assert all(torch.allclose(v, learned(other)[k], atol=1e-7) for k, v in learned(plain).items())


@pytest.mark.slow
@pytest.mark.parametrize("style", ["StylePromptSRC", "StyleMixup"])
def test_a_run_that_stops_after_an_epoch_is_resumed_bit_identical(style, tmp_path, few_sentences):
    check_resumed(style, tmp_path)


def test_a_state_whose_owner_is_gone_is_not_skipped(tmp_path):
    from kdpl.trainers.whole_state import load_whole_state, save_whole_state
    from kdpl.training.checkpoint import CheckpointError

    def trainer(gate, optimizer, steps=0):
        own = {"gate": gate, "optim_gate": gate and optimizer(gate.parameters()), "steps": steps}
        return SimpleNamespace(_models={}, _optims={}, _scheds={}, device=torch.device("cpu"), **own)

    saved, same = (trainer(torch.nn.Linear(1, 1), torch.optim.SGD, steps) for steps in (3, 0))
    save_whole_state(saved, tmp_path, 1, {})
    load_whole_state(same, tmp_path, 1, {})
    assert same.steps == 3 and torch.equal(same.gate.weight, saved.gate.weight)
    for lacking, name in ((trainer(None, None), "gate"), (trainer(torch.nn.Linear(1, 1), lambda _: None), "optim_gate")):
        with pytest.raises(CheckpointError, match=f"has no '{name}'"):
            load_whole_state(lacking, tmp_path, 1, {})


@pytest.mark.slow
def test_a_run_with_labels_or_of_another_seed_is_not_resumed(tmp_path):
    from kdpl.training.checkpoint import CheckpointError

    options = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1)  # the warm-up of an installed Dassl stops, with labels
    build("StyleCoOp", tmp_path / "a", *options).train()
    with pytest.raises(CheckpointError, match="perhaps by the same trainer with labels"):
        build("KDPL_StyleCoOp", tmp_path / "a", *options).train()
    build("KDPL_StyleCoOp", tmp_path / "b", *options).train()
    with pytest.raises(CheckpointError, match="written with seed 1, now 2"):
        build("KDPL_StyleCoOp", tmp_path / "b", *options, seed=2).train()


@pytest.mark.slow
def test_the_kind_of_loss_and_the_teachers_scale_are_those_of_the_options(tmp_path):
    losses = []
    for options in (
        (),
        ("TRAINER.KDPL.LOSS", "forward"),
        ("TRAINER.KDPL.TEMPERATURE", 2.0),
        ("TRAINER.KDPL.TEACHER_LOGIT_SCALE", 7),
    ):
        trainer = build("KDPL_StyleCoOp", tmp_path / str(len(losses)), *options)
        trainer.batch_idx, trainer.num_batches = 0, 9
        losses.append(trainer.forward_backward(next(iter(trainer.train_loader_x)))["loss"])
    assert len({round(loss, 5) for loss in losses}) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TRAINER.KDPL.TEMPERATURE", 0.0), "TRAINER.KDPL.TEMPERATURE is 0.0"),
        (("TRAINER.KDPL.CLASS_AGNOSTIC", True), "bound to the class names"),
        (("TRAINER.KDPL.SHARD_CLASSES", True), "encodes all its names itself"),
        (("DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler"), "puts batches together by label"),
        (("TRAINER.KDPL.ALLOW", "hard_label"), "TRAINER.KDPL.ALLOW 'hard_label' is not one of .* Did you mean 'hard_labels'"),
        (("TRAINER.KDPL.LOSS", "kl"), "TRAINER.KDPL.LOSS 'kl'"),
        (("TRAINER.KDPL.TEACHER", "ViT-Z"), "ViT-Z"),
    ],
)
def test_what_a_wrapped_trainer_cannot_do_is_refused_before_anything_is_loaded(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build("KDPL_StyleCoOp", tmp_path, *options)


def test_several_processes_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    cfg = config("KDPL_CoOp", "emoji_meals", tmp_path)
    from kdpl.trainers.wrappable import check_distilled

    with pytest.raises(ValueError, match="cannot be summed over several processes"):
        check_distilled(cfg, "TCP")


@pytest.mark.slow
def test_a_step_with_two_batches_and_one_without_a_call_are_refused(tmp_path):
    trainer = build("KDPL_StyleCoOp", tmp_path)
    trainer.batch_idx, trainer.num_batches = 0, 9
    batch = next(iter(trainer.train_loader_x))
    with pytest.raises(ValueError, match="takes 2 batches a step"):
        trainer.forward_backward(batch, batch)
    trainer.step = lambda images, labels: (trainer.model(images).mean(), None, labels)
    with pytest.raises(ValueError, match=r"StyleCoOp called neither F.cross_entropy nor"):
        trainer.forward_backward(batch)


@pytest.mark.slow
def test_a_trainer_that_learns_from_sentences_alone_is_refused(tmp_path):
    from kdpl.distill.pseudo_labels import UnsupportedStepError
    from kdpl.trainers import distilled

    class Texts(fork_styles.StyleCoOp):
        def build_data_loader(self):
            super().build_data_loader()
            self.train_loader_x = torch.utils.data.DataLoader(["a photo of a cat."])

    with pytest.raises(UnsupportedStepError, match=r"Texts trains on a data set of its own, list, expected the images of"):
        build(distilled(Texts).__name__, tmp_path, file="KDPL_CoOp")


@pytest.mark.slow
def test_a_model_on_several_gpus_is_refused(tmp_path, monkeypatch):
    from kdpl.trainers.wrappable import check_built

    trainer = build("KDPL_StyleCoOp", tmp_path)
    trainer.model = torch.nn.DataParallel(trainer.model)
    check_built(trainer)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ValueError, match=r"spreads model over 2 GPUs .* CUDA_VISIBLE_DEVICES=0"):
        check_built(trainer)


@pytest.mark.parametrize("scale", [None, torch.tensor(100.0), "two"])
def test_a_model_without_one_logarithm_of_the_scale_is_refused_and_the_way_out_works(scale, tmp_path):
    trainer = build("KDPL_StyleCoOp", tmp_path)
    model = trainer.model
    if scale == "two":
        model.a, model.b = torch.nn.Module(), torch.nn.Module()
        model.a.logit_scale, model.b.logit_scale = torch.tensor(4.0), torch.tensor(4.5)
        model.clip.logit_scale = model.logit_scale = None
    else:
        model.logit_scale = model.clip.logit_scale = None
        if scale is not None:
            del model.logit_scale
            model.logit_scale = scale
    with pytest.raises(ValueError, match="expected one logarithm of CLIP's scale"):
        trainer.load_for_training()


# ---------------------------------------------------------------------------------------------------- what would not learn


def test_a_learned_parameter_that_is_in_no_optimizer_is_an_error(tmp_path, monkeypatch):
    optimizer = fork_styles.build_optimizer
    monkeypatch.setattr(fork_styles, "build_optimizer", lambda model, cfg: optimizer(list(model.parameters())[:1], cfg))
    with pytest.raises(ValueError, match=r"would never learn: MultiModalPromptLearner\.\w+.* and \d more"):
        build("KDPL_StyleMaPLe", tmp_path)


def test_kdpls_own_trainer_refuses_an_optimizer_without_its_parameters(tmp_path, monkeypatch):
    """As an installed Dassl makes it with OPTIM.STAGED_LR: of child modules alone."""
    from dassl.engine import build_trainer
    from dassl.optim import build_optimizer

    from kdpl.trainers import prompts

    monkeypatch.setattr(prompts, "build_optimizer", lambda m, cfg: build_optimizer([torch.nn.Parameter(torch.ones(1))], plain))
    cfg = config("KDPL_CoOp", "emoji_meals", tmp_path, *SMALL)
    plain = cfg.OPTIM.clone()
    cfg.OPTIM.STAGED_LR, cfg.OPTIM.NEW_LAYERS = True, ("probe",)
    with pytest.raises(ValueError, match=r"would never learn: ctx. OPTIM.STAGED_LR is True, with .*set it to False"):
        build_trainer(cfg)


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


# -------------------------------------------------------------------------------------------------------------- teachers

TWO = ("TRAINER.KDPL.TEACHER", "emoji_teacher + emoji_student", "TRAINER.KDPL.TEMPERATURE", 2.0)


@pytest.mark.slow
def test_a_trainer_learns_from_the_mean_of_several_teachers_with_and_without_views(tmp_path):
    trainer = build("KDPL_StyleCoOp", tmp_path / "a", *TWO, "OPTIM.MAX_EPOCH", 1)
    images = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(1)).to(trainer.device)
    teacher, scale = trainer._kdpl_teacher, trainer._kdpl_scale
    expected = sum((m.logits(m.image_features(images), scale).double() / 2).softmax(-1) for m in teacher.members) / 2
    torch.testing.assert_close(
        (trainer._teacher_logits({"img": images}).double() / 2).softmax(-1), expected, atol=1e-6, rtol=1e-5
    )
    views = ("TRAINER.KDPL.VIEWS", 1, "TRAINER.KDPL.CACHE_DIR", tmp_path / "cache", "OPTIM.MAX_EPOCH", 1)
    build("KDPL_StyleCoOp", tmp_path / "b", *TWO, *views).train()
    again = build("KDPL_StyleCoOp", tmp_path / "c", *TWO, *views)
    again.load_for_training()
    assert [int(features.table.known.sum()) >= 24 for features in again._kdpl_views] == [True, True]
    batch = next(iter(again.train_loader_x))
    torch.testing.assert_close(
        again._teacher_logits(batch), trainer._teacher_logits({"img": batch["img"].to(trainer.device)}), atol=1e-4, rtol=1e-4
    )


@pytest.mark.slow
def test_a_run_is_not_resumed_with_another_teacher(tmp_path):
    from kdpl.training.checkpoint import CheckpointError

    options = ("OPTIM.MAX_EPOCH", 1, "TRAIN.CHECKPOINT_FREQ", 1)
    build("KDPL_StyleCoOp", tmp_path, *options, "TRAINER.KDPL.TEACHER_TEMPLATES", "dataset").train()
    for other, message in ((TWO[:2], "teacher "), ((), "teacher's sentences 1 ")):
        with pytest.raises(CheckpointError, match=message):
            build("KDPL_StyleCoOp", tmp_path, *options, *other).train()
