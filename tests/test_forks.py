"""Trainers of forks learn without labels, by their own steps: the wrapped ones are KDPL's to 1e-6, and honest."""

import fork_styles
import pytest
import torch
from support import config

import kdpl.trainers
from kdpl.trainers.wrapped import DistilledTrainer

SMALL = ("DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAIN.PRINT_FREQ", 1000, "TEST.NO_TEST", True)
NODES = {"StyleMaPLe": "KDPL_MaPLe", "StylePromptSRC": "KDPL_PromptSRC"}


def build(trainer, output, *options, seed=1, file=None):
    from dassl.engine import build_trainer
    from dassl.utils import set_random_seed

    from support import ROOT

    file = file or NODES.get(trainer.removeprefix("KDPL_"), trainer if not "Style" in trainer else "KDPL_CoOp")
    views = ("DATALOADER.K_TRANSFORMS", 2) if "Views" in trainer else ()
    cfg = config("KDPL_CoOp", "emoji_food", output, "--seed", seed, "OPTIM.MAX_EPOCH", 2, *SMALL, *options,
                 config_file=f"{ROOT}/configs/trainers/{file}/emoji.yaml")  # fmt: skip
    cfg.TRAINER.NAME = trainer
    if views:
        cfg.merge_from_list(list(views))
    set_random_seed(seed)
    return build_trainer(cfg)


def learned(trainer):
    return {f"{m}.{k}": v.detach().clone() for m, model in trainer._models.items() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("style", fork_styles.STYLES)
def test_a_trainer_of_any_style_learns_without_labels(style, tmp_path, capsys):
    trainer = build(f"KDPL_{style}", tmp_path)
    assert isinstance(trainer, DistilledTrainer) and isinstance(trainer, getattr(fork_styles, style))
    before = learned(trainer)
    trainer.train()
    after = learned(trainer)
    assert all(not torch.equal(before[k], after[k]) for k in before)
    printed = capsys.readouterr().out
    assert printed.count(f"KDPL in {style}: replaced by the divergence from the teacher") == 1
    assert "taken out of the batch: " in printed and "impath, index" in printed and "agreement with the teacher" in printed


# ------------------------------------------------------------------------------------------- identity with our own trainers

MAPS = {
    "StyleCoOp": lambda name: name,
    "StyleMaPLe": lambda name: name.removeprefix("prompt_learner."),
    "StylePromptSRC": lambda name: _promptsrc(name),
}


def _promptsrc(name):
    layer = next((part for part in name.split(".") if part.isdigit()), "0")
    return f"{'visual' if name.startswith('image_encoder') else 'text'}.{layer}"


@pytest.mark.parametrize("style", MAPS)
def test_a_wrapped_trainer_is_kdpls_own_to_1e_6(style, tmp_path):
    """Losses of each of four steps, and the parameters after them."""
    own_name = NODES.get(style, "KDPL_CoOp")
    options = ("OPTIM.WARMUP_EPOCH", -1, "OPTIM.LR", 0.02, "DATASET.NUM_SHOTS", 4)
    from support import config as own_config
    from dassl.engine import build_trainer

    own = build_trainer(own_config(own_name, "emoji_food", tmp_path / "own", "--seed", 1, *SMALL, *options))
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
        assert their["loss"] == pytest.approx(float(ours.get("loss_total", ours["loss"])), abs=1e-6, rel=1e-6)
    for name, parameter in own.student.learned.named_parameters():
        assert (parameter - start[name]).abs().max() > 1e-4
        assert torch.allclose(parameter, pairs[name], atol=1e-6), (name, (parameter - pairs[name]).abs().max())


def test_the_batches_of_a_seed_are_those_of_kdpls_own_trainer(tmp_path):
    from dassl.engine import build_trainer

    own = build_trainer(config("KDPL_CoOp", "emoji_food", tmp_path / "own", "--seed", 1, *SMALL))
    wrapped = build("KDPL_StyleCoOp", tmp_path / "wrapped")
    for trainer in (own, wrapped):
        trainer.epoch = trainer.train_loader_x.epoch = 1
    for a, b in zip(own.train_loader_x, wrapped.train_loader_x, strict=True):
        assert a["impath"] == b["impath"] and torch.equal(own.images(a), b["img"])


# ------------------------------------------------------------------------------------------------------------- honesty


@pytest.mark.parametrize("style", ["StyleCoOp", "StyleProbe", "StyleSurgery"])
def test_other_true_labels_change_nothing_bit_for_bit(style, tmp_path, monkeypatch):
    from kdpl.datasets.emoji_scenes import EmojiScenes

    options = ("OPTIM.MAX_EPOCH", 1, "OPTIM.WARMUP_EPOCH", -1)
    first = build(f"KDPL_{style}", tmp_path / "a", *options)
    start = learned(first)
    first.train()

    import kdpl.trainers.unlabelled as unlabelled

    hide = unlabelled._hidden
    monkeypatch.setattr(unlabelled, "UnlabelledItem", lambda path, domain: _wrong(path, domain))
    other = build(f"KDPL_{style}", tmp_path / "b", *options)
    assert all(torch.equal(start[k], v) for k, v in learned(other).items())
    labels = [batch["label"].tolist() for batch in other.train_loader_x]
    assert {label for batch in labels for label in batch} <= set(range(42)) and EmojiScenes and hide
    other.train()
    assert all(torch.equal(v, learned(other)[k]) for k, v in learned(first).items())
    assert any(not torch.equal(start[k], v) for k, v in learned(first).items())


def _wrong(path, domain):
    """An item with a label, as if nothing hid it, and a wrong one."""
    from dassl.data.datasets import Datum

    return Datum(path, label=sum(path.encode()) % 42, domain=domain, classname="wrong")
