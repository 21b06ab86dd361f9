"""Registries, logs and checkpoints of the bundled engine."""

import sys

import fallback_pieces  # noqa: F401  (before dassl, which it makes importable)
import pytest
import torch

# isort: split
from dassl.utils import (
    Registry,
    load_checkpoint,
    resume_from_checkpoint,
    save_checkpoint,
    setup_logger,
)


class CoOp:
    pass


# Registry


def test_a_name_is_registered_once_unless_forced():
    registry = Registry("TRAINER")
    registry.register(CoOp)
    with pytest.raises(KeyError, match="CoOp"):
        registry.register(CoOp)

    other = type("CoOp", (), {})
    assert registry.register(force=True)(other) is other
    assert registry.get("CoOp") is other


# Log


@pytest.fixture
def restored_stdout(monkeypatch):
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # put back at the end of the test


def test_what_is_printed_is_also_in_the_log(tmp_path, capsys, restored_stdout):
    setup_logger(str(tmp_path / "run"))
    print("* accuracy: 85.3%")
    assert (tmp_path / "run" / "log.txt").read_text() == "* accuracy: 85.3%\n"
    assert capsys.readouterr().out == "* accuracy: 85.3%\n"


def test_an_old_log_is_never_overwritten(tmp_path, restored_stdout):
    for run in ("first", "second", "third"):
        setup_logger(str(tmp_path))
        print(run)
    logs = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert logs.pop("log.txt") == "first\n"
    assert all(name.startswith("log.txt-20") for name in logs)
    assert sorted(logs.values()) == ["second\n", "third\n"]


# Checkpoints


def trained(steps: int):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    for _ in range(steps):
        model(torch.ones(1, 3)).sum().backward()
        optimizer.step()
        scheduler.step()
    return model, optimizer, scheduler


def checkpoint_of(model, optimizer, scheduler, epoch):
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "val_result": None,
    }


def test_training_resumes_from_the_newest_checkpoint_with_optimizer_and_scheduler(tmp_path, capsys):
    save_checkpoint(checkpoint_of(*trained(1), 1), tmp_path)
    model, optimizer, scheduler = trained(2)
    save_checkpoint(checkpoint_of(model, optimizer, scheduler, 2), tmp_path)
    assert (tmp_path / "checkpoint").read_text() == "model.pth.tar-2\n"

    fresh = trained(0)
    assert resume_from_checkpoint(tmp_path, *fresh) == 2
    assert torch.equal(fresh[0].weight, model.weight)
    assert fresh[1].state_dict()["state"][0]["momentum_buffer"].equal(optimizer.state[model.weight]["momentum_buffer"])
    assert fresh[2].get_last_lr() == scheduler.get_last_lr()


class RunsCode:
    def __reduce__(self):
        return (exec, ("raise AssertionError('code in a checkpoint was run')",))


def test_a_checkpoint_that_could_run_code_is_refused_and_named(tmp_path):
    torch.save({"state_dict": {}, "epoch": 1, "scheduler": RunsCode()}, tmp_path / "evil.pth.tar")
    with pytest.raises(ValueError, match=r"evil\.pth\.tar' is not .* tensors, numbers and text alone .*could run code"):
        load_checkpoint(tmp_path / "evil.pth.tar")


def test_a_missing_or_damaged_checkpoint_is_named(tmp_path, capsys):
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-9"):
        load_checkpoint(tmp_path / "model.pth.tar-9")
    with pytest.raises(FileNotFoundError, match="checkpoint"):
        resume_from_checkpoint(tmp_path, torch.nn.Linear(1, 1))
    save_checkpoint(checkpoint_of(*trained(1), 1), tmp_path)
    whole = (tmp_path / "model.pth.tar-1").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"hello world" * 50):
        (tmp_path / "model.pth.tar-1").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.pth\.tar-1' is not a complete checkpoint"):
            load_checkpoint(tmp_path / "model.pth.tar-1")
