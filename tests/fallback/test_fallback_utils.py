"""Registries, files, seeds, logs, meters, checkpoints and the configuration of the bundled engine."""

import importlib
import random
import sys

import fallback_pieces  # noqa: F401  (before dassl, which it makes importable)
import numpy as np
import pytest
import torch
from yacs.config import CfgNode

# isort: split
from dassl.config import get_cfg_default
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    Registry,
    count_num_param,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
    set_random_seed,
    setup_logger,
)


class CoOp:
    pass


# Registry


def test_what_is_registered_is_found_by_its_name():
    registry = Registry("TRAINER")

    @registry.register()
    class KDPL:
        pass

    registry.register(CoOp)
    assert registry.registered_names() == ["KDPL", "CoOp"]
    assert registry.get("KDPL") is KDPL
    assert registry.get("CoOp") is CoOp


def test_a_name_is_registered_once_unless_forced():
    registry = Registry("TRAINER")
    registry.register(CoOp)
    with pytest.raises(KeyError, match="CoOp"):
        registry.register(CoOp)

    other = type("CoOp", (), {})
    assert registry.register(force=True)(other) is other
    assert registry.get("CoOp") is other


# Files and images


# Seeds and environment


def test_one_seed_fixes_all_three_generators():
    def draw():
        set_random_seed(7)
        return random.random(), np.random.rand(), torch.rand(1).item()

    assert draw() == draw()


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


# Meters


def test_named_values_print_as_latest_and_average():
    meter = MetricMeter()
    meter.update({"loss": 1.0, "loss_kl_forward": torch.tensor(0.25)})
    meter.update({"loss": 2.0})
    meter.update(None)
    assert str(meter) == "loss 2.0000 (1.5000) loss_kl_forward 0.2500 (0.2500)"


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


def test_data_parallel_weights_are_saved_under_the_plain_names(tmp_path, capsys):
    model = torch.nn.DataParallel(torch.nn.Linear(3, 2))
    save_checkpoint({"state_dict": model.state_dict(), "epoch": 1}, tmp_path)
    assert set(load_checkpoint(tmp_path / "model.pth.tar-1")["state_dict"]) == {"weight", "bias"}


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


# Configuration


def test_a_configuration_of_the_coop_family_merges():
    cfg = get_cfg_default()
    published = """
        DATALOADER: {TRAIN_X: {BATCH_SIZE: 32}, TEST: {BATCH_SIZE: 100}, NUM_WORKERS: 8}
        INPUT:
          SIZE: (224, 224)
          INTERPOLATION: "bicubic"
          PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
          PIXEL_STD: [0.26862954, 0.26130258, 0.27577711]
          TRANSFORMS: ["random_resized_crop", "random_flip", "normalize"]
        OPTIM:
          {NAME: "sgd", LR: 0.002, MAX_EPOCH: 50, LR_SCHEDULER: "cosine", WARMUP_EPOCH: 1, WARMUP_TYPE: "constant",
           WARMUP_CONS_LR: 1e-5}
        TRAIN: {PRINT_FREQ: 5}
        MODEL: {BACKBONE: {NAME: "RN50"}}
    """
    cfg.merge_from_other_cfg(CfgNode.load_cfg(published))
    assert cfg.INPUT.TRANSFORMS == ("random_resized_crop", "random_flip", "normalize")
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5


def test_what_forks_import_from_other_places_is_there():
    """DePT: the meters and the writer from the trainers' module, and a configuration without other trainers' nodes."""
    from dassl.config import clean_cfg
    from dassl.engine import trainer
    from torch.utils.tensorboard import SummaryWriter

    assert (trainer.MetricMeter, trainer.AverageMeter, trainer.SummaryWriter) == (MetricMeter, AverageMeter, SummaryWriter)
    with pytest.raises(AttributeError, match="has no attribute 'Writer'"):
        _ = trainer.Writer
    cfg = get_cfg_default()
    cfg.TRAINER.COOP, cfg.TRAINER.MAPLE = CfgNode(), CfgNode()
    clean_cfg(cfg, "CoOp")
    assert sorted(cfg.TRAINER) == ["COOP", "NAME"] and cfg.OPTIM == get_cfg_default().OPTIM


NAMES = {
    "dassl.config": "get_cfg_default clean_cfg",
    "dassl.engine": "TRAINER_REGISTRY build_trainer TrainerBase SimpleTrainer TrainerX",
    "dassl.data": "DataManager DatasetWrapper",
    "dassl.data.datasets": "DATASET_REGISTRY build_dataset Datum DatasetBase",
    "dassl.data.transforms": "build_transform INTERPOLATION_MODES",
    "dassl.optim": "build_optimizer build_lr_scheduler",
    "dassl.optim.radam": "RAdam",
    "dassl.evaluation": "EVALUATOR_REGISTRY build_evaluator Classification",
    "dassl.metrics": "compute_accuracy",
    "dassl.utils": "Registry check_availability setup_logger set_random_seed read_image read_json write_json mkdir_if_missing "
    "listdir_nohidden save_checkpoint load_checkpoint resume_from_checkpoint load_pretrained_weights count_num_param "
    "AverageMeter MetricMeter collect_env_info tolist_if_not",
}


@pytest.mark.parametrize("module", NAMES)
def test_every_name_that_forks_import_is_there(module):
    assert not [name for name in NAMES[module].split() if not hasattr(importlib.import_module(module), name)]


def test_pretrained_weights_and_parameters(tmp_path):
    one, other = torch.nn.Linear(2, 3), torch.nn.Linear(2, 3)
    save_checkpoint({"state_dict": one.state_dict(), "epoch": 1}, tmp_path)
    load_pretrained_weights(other, tmp_path / "model.pth.tar-1")
    assert torch.equal(other.weight, one.weight) and count_num_param(other) == count_num_param(params=other.parameters()) == 9
