"""Configurations of forks and of KDPL load beside each other: defaults of another type, older versions, negative counts."""

import pytest
from dassl.config import get_cfg_default
from support import ROOT
from yacs.config import CfgNode as CN

import kdpl
from kdpl.config.defaults import learner_options, student_options
from kdpl.config.keys import ConfigError


def fork_cfg(lacking="", **coop):
    cfg = get_cfg_default()
    cfg.INPUT.pop(lacking, None)
    cfg.TRAINER.COOP = CN({"N_CTX": 16, "CSC": False, "CTX_INIT": "", "PREC": "fp16", "CLASS_TOKEN_POSITION": "end", **coop})
    kdpl.extend_cfg(cfg)
    return cfg


@pytest.mark.parametrize("value", ["a photo of a", "", False, True])
def test_a_default_of_another_type_takes_the_forks_values_and_kdpls(value):
    """By the fork's own merging, which compares types."""
    cfg = fork_cfg(CTX_INIT=False)
    assert student_options(cfg, "COOP").CTX_INIT == ""
    cfg.merge_from_list(["TRAINER.COOP.CTX_INIT", value])
    assert value == cfg.TRAINER.COOP.CTX_INIT


def test_every_configuration_of_kdpl_merges_into_a_fork_with_defaults_of_another_type_and_an_older_dassl():
    files = sorted(ROOT.glob("configs/trainers/**/*.yaml"))
    assert len(files) > 30
    for file in files:
        fork_cfg(CTX_INIT=False, lacking="RRCROP_SCALE").merge_from_file(str(file))


def test_keys_that_a_fork_has_added_to_a_node_are_not_options_of_kdpls_learner():
    """KgCoOp's and TCP's W and ALPHA are in the node of CoOp."""
    options = student_options(fork_cfg(W=8.0, ALPHA=1.0), "COOP")
    assert learner_options("COOP", options) == options and "W" not in options and options.N_CTX == 16


def test_a_configuration_without_kdpls_nodes_is_named_by_every_trainer(tmp_path):
    import kdpl.trainers.baselines
    from kdpl.trainers.wrapped import DistilledTrainer

    for build in (kdpl.trainers.KDPL_CoOp, kdpl.trainers.baselines.ZeroshotCLIP, DistilledTrainer):
        with pytest.raises(ConfigError, match=r"`kdpl.extend_cfg\(cfg\)`"):
            build(get_cfg_default())
