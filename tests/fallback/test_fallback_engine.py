"""The life cycle of a run on the bundled engine, with a real trainer on real images."""

import re
from pathlib import Path

import fallback_pieces as pieces
import pytest
import torch

# isort: split
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl.utils import load_checkpoint, set_random_seed


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("colours")
    pieces.make_images(folder)
    return folder


def run(root: Path, output: Path, *overrides):
    cfg = pieces.small_cfg(root, output, *overrides)
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    trainer.train()
    return trainer


def weights(output: Path, name: str = "model.pth.tar-3") -> torch.Tensor:
    return load_checkpoint(output / "probe" / name)["state_dict"]["2.weight"]


@pytest.fixture(scope="module")
def finished(root, tmp_path_factory):
    """A run of three epochs: its trainer, and what its log says."""
    output = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        import io
        import sys

        printed = io.StringIO()
        patch.setattr(sys, "stdout", printed)
        trainer = run(root, output)
    return trainer, printed.getvalue().splitlines()


# A whole run


def test_a_run_learns_and_tests(finished):
    trainer, printed = finished
    assert trainer.test() > 80
    after = printed[printed.index("Finish training") :]
    assert after[1] == "Deploy the last-epoch model"
    accuracy = [m[1] for line in after if (m := re.search(r"\* accuracy: ([\.\deE+-]+)%", line))]
    assert [float(a) for a in accuracy] == [pytest.approx(trainer.test(), abs=0.05)]
    assert re.fullmatch(r"Elapsed: \d+:\d\d:\d\d", after[-1])


def test_a_checkpoint_holds_all_that_resuming_needs_and_loads_safely(finished):
    trainer, _ = finished
    folder = Path(trainer.output_dir, "probe")
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "model.pth.tar-3"]
    assert (folder / "checkpoint").read_text() == "model.pth.tar-3\n"
    checkpoint = torch.load(folder / "model.pth.tar-3", weights_only=True)
    assert set(checkpoint) == {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert checkpoint["epoch"] == 3
    assert checkpoint["scheduler"]["last_epoch"] == 3


def test_a_resumed_run_ends_exactly_where_an_unbroken_one_does(finished, root, tmp_path, capsys):
    class Interrupted(Exception):
        pass

    @TRAINER_REGISTRY.register(force=True)
    class Breaks(pieces.LinearProbe):
        def before_epoch(self):
            if self.epoch == 2:
                raise Interrupted

    cfg_changes = ("TRAIN.CHECKPOINT_FREQ", 1)
    with pytest.raises(Interrupted):
        run(root, tmp_path, "TRAINER.NAME", "Breaks", *cfg_changes)
    assert (tmp_path / "probe" / "checkpoint").read_text() == "model.pth.tar-2\n"

    resumed = run(root, tmp_path, *cfg_changes)
    assert resumed.start_epoch == 2
    assert torch.equal(weights(tmp_path), weights(Path(finished[0].output_dir)))


# The best model on the validation set


class Scripted(pieces.LinearProbe):
    """Its validation accuracy is 50, 70, 60 in epochs 0, 1, 2, and its weights are the number of the epoch."""

    def forward_backward(self, batch):
        for parameter in self.model.parameters():
            parameter.data.fill_(self.epoch)
        return {"loss": 0.0}

    def test(self, split=None):
        if split == "val":
            return [50.0, 70.0, 60.0][self.epoch]
        self.tested = self.model[2].weight.data.clone()
        return super().test(split)


TRAINER_REGISTRY.register(Scripted)


def test_the_best_validated_model_is_kept_and_tested(root, tmp_path, capsys):
    trainer = run(root, tmp_path, "TRAINER.NAME", "Scripted", "TEST.FINAL_MODEL", "best_val")
    best = load_checkpoint(tmp_path / "probe" / "model-best.pth.tar")
    assert (best["epoch"], best["val_result"]) == (2, 70.0)
    assert trainer.tested.eq(1).all()


def test_a_resumed_run_does_not_forget_the_best_model(root, tmp_path, capsys):
    changes = ("TRAINER.NAME", "Scripted", "TEST.FINAL_MODEL", "best_val")
    run(root, tmp_path, *changes, "OPTIM.MAX_EPOCH", 2)
    trainer = run(root, tmp_path, *changes)
    assert trainer.start_epoch == 2
    assert trainer.best_result == 70
    assert trainer.tested.eq(1).all()


# Models


def test_a_model_is_loaded_by_its_epoch_and_missing_ones_are_named(finished, root, tmp_path, capsys):
    done = finished[0]
    trainer = build_trainer(pieces.small_cfg(root, tmp_path))
    trainer.load_model(done.output_dir, epoch=3)
    assert torch.equal(trainer.model[2].weight, weights(Path(done.output_dir)))
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-7.*has model\.pth\.tar-3.*--load-epoch"):
        trainer.load_model(done.output_dir, epoch=7)
    with pytest.raises(FileNotFoundError, match=r"model-best.*has model"):
        trainer.load_model(done.output_dir)
    trainer.load_model("")
    assert "No model is loaded" in capsys.readouterr().out


def pair() -> TrainerBase:
    trainer = TrainerBase()
    for name in ("text", "vision"):
        model = torch.nn.Linear(2, 1)
        trainer.register_model(name, model, torch.optim.SGD(model.parameters(), lr=0.1))
    trainer.register_model("frozen", torch.nn.Linear(2, 1))
    return trainer


def test_checkpoints_of_several_models_resume_together(tmp_path, capsys):
    saved, fresh = pair(), pair()
    saved.save_model(4, tmp_path, val_result=torch.tensor(61.5))
    assert fresh.resume_model_if_exist(tmp_path) == 5
    for name in ("text", "vision", "frozen"):
        assert torch.equal(fresh._models[name].weight, saved._models[name].weight)
    assert load_checkpoint(tmp_path / "text" / "model.pth.tar-5")["val_result"] == 61.5


def test_checkpoints_of_different_epochs_are_not_mixed(tmp_path, capsys):
    trainer = pair()
    trainer.save_model(0, tmp_path)
    trainer.save_model(1, tmp_path)
    (tmp_path / "vision" / "checkpoint").write_text("model.pth.tar-1\n")
    with pytest.raises(ValueError, match=r"different epochs: \{'text': 2, 'vision': 1, 'frozen': 2\}"):
        trainer.resume_model_if_exist(tmp_path)
