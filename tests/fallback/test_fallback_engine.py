"""The life cycle of a run on the bundled engine, with a real trainer on real images."""

import re
import sys
from pathlib import Path

import fallback_pieces as pieces
import pytest
import torch

# isort: split
from dassl.engine import TRAINER_REGISTRY, TrainerBase, build_trainer
from dassl.utils import Registry, load_checkpoint, set_random_seed, setup_logger


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

        printed = io.StringIO()
        patch.setattr(sys, "stdout", printed)
        trainer = run(root, output)
    return trainer, printed.getvalue().splitlines()


def test_a_run_learns_and_tests(finished):
    trainer, printed = finished
    assert trainer.test() > 80
    after = printed[printed.index("Finish training") :]
    assert after[1] == "Deploy the last-epoch model"
    accuracy = [m[1] for line in after if (m := re.search(r"\* accuracy: ([\.\deE+-]+)%", line))]
    assert [float(a) for a in accuracy] == [pytest.approx(trainer.test(), abs=0.05)]
    assert re.fullmatch(r"Elapsed: \d+:\d\d:\d\d", after[-1])


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


def test_a_resumed_run_does_not_forget_the_best_model(root, tmp_path, capsys):
    changes = ("TRAINER.NAME", "Scripted", "TEST.FINAL_MODEL", "best_val")
    run(root, tmp_path, *changes, "OPTIM.MAX_EPOCH", 2)
    trainer = run(root, tmp_path, *changes)
    assert trainer.start_epoch == 2
    assert trainer.best_result == 70
    assert trainer.tested.eq(1).all()
    best = load_checkpoint(tmp_path / "probe" / "model-best.pth.tar")
    assert (best["epoch"], best["val_result"]) == (2, 70.0)


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


def test_a_name_is_registered_once_unless_forced():
    registry = Registry("TRAINER")
    registry.register(Scripted)
    with pytest.raises(KeyError, match="Scripted"):
        registry.register(Scripted)
    other = type("Scripted", (), {})
    assert registry.register(force=True)(other) is other
    assert registry.get("Scripted") is other


def test_what_is_printed_is_also_in_the_log_and_an_old_log_is_never_overwritten(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back at the end of the test
    for name in ("first", "second", "third"):
        setup_logger(str(tmp_path / "run"))
        print(name)
    logs = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert capsys.readouterr().out == "first\nsecond\nthird\n" and logs.pop("log.txt") == "first\n"
    assert all(name.startswith("log.txt-20") for name in logs) and sorted(logs.values()) == ["second\n", "third\n"]
