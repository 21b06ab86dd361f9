"""Configurations of forks and of KDPL load beside each other: defaults of another type, older versions, negative counts."""

import pytest
import torchvision.transforms as T
from dassl.config import get_cfg_default
from support import ROOT, config
from yacs.config import CfgNode as CN

import kdpl
from kdpl.config.defaults import learner_options, student_options
from kdpl.config.keys import ConfigError
from kdpl.training.pixels import apply_crop_scale


def fork_cfg(**coop):
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CN({"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end", **coop})
    kdpl.extend_cfg(cfg)
    return cfg


@pytest.mark.parametrize("default", [False, ""])
@pytest.mark.parametrize("value", ["a photo of a", "", False, True])
def test_a_default_of_another_type_takes_the_forks_values_and_kdpls(default, value):
    """By the fork's own merging, which compares types."""
    cfg = fork_cfg(CTX_INIT=default)
    assert not cfg.TRAINER.COOP.CTX_INIT
    if type(value) is type(default) or default is False:
        cfg.merge_from_list(["TRAINER.COOP.CTX_INIT", value])
        assert value == cfg.TRAINER.COOP.CTX_INIT


def test_every_configuration_of_kdpl_merges_into_a_fork_with_defaults_of_another_type():
    files = sorted(ROOT.glob("configs/trainers/**/*.yaml"))
    assert len(files) > 30
    for file in files:
        fork_cfg(CTX_INIT=False).merge_from_file(str(file))


def test_kdpls_own_trainers_read_an_empty_default_as_text_and_refuse_what_is_none():
    assert student_options(fork_cfg(CTX_INIT=False), "COOP").CTX_INIT == ""
    cfg = fork_cfg(CTX_INIT=False)
    cfg.TRAINER.COOP.CTX_INIT = False
    assert student_options(cfg, "COOP").CTX_INIT == ""
    cfg.TRAINER.COOP.CTX_INIT = True
    with pytest.raises(ConfigError, match=r"TRAINER.COOP.CTX_INIT is True: expected a str"):
        student_options(cfg, "COOP")


def test_keys_that_a_fork_has_added_to_a_node_are_not_options_of_kdpls_learner():
    """KgCoOp's and TCP's W and ALPHA are in the node of CoOp."""
    options = student_options(fork_cfg(W=8.0, ALPHA=1.0), "COOP")
    assert learner_options("COOP", options) == options and "W" not in options and options.N_CTX == 16


def test_an_older_dassl_that_lacks_a_key_takes_every_configuration():
    cfg = get_cfg_default()
    del cfg.INPUT["RRCROP_SCALE"]
    kdpl.extend_cfg(cfg)
    for file in sorted(ROOT.glob("configs/trainers/KDPL_*/*.yaml")):
        cfg.clone().merge_from_file(str(file))


def test_a_crop_scale_that_an_older_dassl_does_not_read_is_applied():
    crop = T.RandomResizedCrop(8)
    apply_crop_scale(T.Compose([crop, T.ToTensor()]), (0.5, 1.0))
    assert crop.scale == (0.5, 1.0)


def test_a_negative_checkpoint_frequency_saves_the_last_epoch_only(tmp_path):
    from dassl.engine import build_trainer

    options = ("TRAIN.CHECKPOINT_FREQ", -1, "OPTIM.MAX_EPOCH", 2, "DATASET.NUM_SHOTS", 1, "TEST.NO_TEST", True)
    build_trainer(config("KDPL_CoOp", "emoji_meals", tmp_path, *options)).train()
    assert [p.name for p in sorted((tmp_path / "prompt_learner").iterdir())] == ["checkpoint", "model.pth.tar-2"]


def test_a_configuration_without_kdpls_nodes_is_named_by_every_trainer(tmp_path):
    import kdpl.trainers.baselines
    from kdpl.trainers.wrapped import DistilledTrainer

    for build in (kdpl.trainers.KDPL_CoOp, kdpl.trainers.baselines.ZeroshotCLIP, DistilledTrainer):
        with pytest.raises(ConfigError, match=r"`kdpl.extend_cfg\(cfg\)`"):
            build(get_cfg_default())
    cfg = get_cfg_default()
    kdpl.extend_cfg(cfg)
    cfg.merge_from_file(f"{ROOT}/configs/trainers/KDPL_CoOp/emoji.yaml")
