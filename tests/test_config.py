"""Configurations merge as the forks' do, lose nothing to YAML's types, and name what does not fit."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import default

import kdpl
from kdpl.config.keys import ConfigError
from kdpl.config.merging import merge_file, merge_options


def test_a_forks_own_values_are_kept_and_missing_nodes_added():
    from dassl.config import get_cfg_default
    from yacs.config import CfgNode as CN

    cfg = get_cfg_default()
    cfg.TRAINER.COOP = CN({"N_CTX": 7})
    kdpl.extend_cfg(cfg)
    assert cfg.TRAINER.COOP.N_CTX == 7
    assert cfg.TRAINER.COOP.CLASS_TOKEN_POSITION == "end"
    assert cfg.TRAINER.KDPL.TEACHER == "ViT-H-14-quickgelu"
    assert cfg.DATASET.SUBSAMPLE_CLASSES == "all"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("OPTIM.LR", "1e-5", 1e-5),
        ("OPTIM.LR", "1", 1.0),
        ("OPTIM.MAX_EPOCH", "5.0", 5),
        ("OPTIM.STEPSIZE", "[3, 6]", (3, 6)),
        ("INPUT.PIXEL_MEAN", "(0.5, 0.5, 0.5)", [0.5, 0.5, 0.5]),
        ("DATASET.SOURCE_DOMAINS", "twemoji", ("twemoji",)),
        ("TRAINER.COOP.CTX_INIT", "a photo of a", "a photo of a"),
        ("TRAINER.KDPL.TEACHER_LOGIT_SCALE", "50", "50"),
        ("TRAINER.PROMPTSRC.GPA_MEAN", "6.5", 6.5),
        ("TRAINER.PROMPTSRC.TEXT_LOSS_WEIGHT", "25", 25),
        ("TRAINER.KDPL.CLASS_AGNOSTIC", "True", True),
    ],
)
def test_a_value_becomes_the_type_of_its_key(key, text, value, tmp_path):
    for merge in ("options", "file"):
        cfg = default()
        if merge == "options":
            merge_options(cfg, [key, text])
        else:
            lines = [f"{'  ' * i}{part}:" for i, part in enumerate(key.split("."))]
            (tmp_path / "c.yaml").write_text("\n".join(lines) + f" {text}\n")
            merge_file(cfg, tmp_path / "c.yaml")
        for part in key.split("."):
            cfg = cfg[part]
        assert cfg == value and type(cfg) is type(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["OPTIM.LRR", "0.1"], r"'OPTIM.LRR' is not a configuration key \(on the command line\). Did you mean 'OPTIM.LR'"),
        (["TRAINER.KDLP.K_MAX", "3"], "Did you mean 'TRAINER.KDPL"),
        (["OPTIM.LR", "fast"], "OPTIM.LR is 'fast' .*: expected a float, such as 0.0003"),
        (["OPTIM.MAX_EPOCH", "2.5"], "OPTIM.MAX_EPOCH is 2.5 .*: expected a int"),
        (["USE_CUDA", "1"], "USE_CUDA is 1 .*: expected a bool"),
        (["OPTIM", "sgd"], "OPTIM is a group of keys"),
        (["OPTIM.LR"], "'OPTIM.LR' has no value"),
    ],
)
def test_what_does_not_fit_is_named_with_the_closest(options, message):
    with pytest.raises(ConfigError, match=message):
        merge_options(default(), options)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("OPTIM: [1, 2]", "OPTIM is a group of keys"),
        ("- a\n- b", "holds a list, expected keys and values"),
        ("a: b: c", "is not readable YAML"),
        ("OPTIM:\n  LRR: 1", r"'OPTIM.LRR' is not a configuration key \(in '.*c.yaml'\)"),
    ],
)
def test_a_broken_file_is_named(content, message, tmp_path):
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(ConfigError, match=message):
        merge_file(default(), tmp_path / "c.yaml")
    with pytest.raises(ConfigError, match=r"There is no configuration file .*d\.yaml'. Did you mean 'c\.yaml'"):
        merge_file(default(), tmp_path / "d.yaml")


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_no_text_ends_in_another_error_than_ours(key, value):
    for options in ([key, value], [f"OPTIM.{key}", value], ["OPTIM.LR", value], ["INPUT.SIZE", value]):
        with contextlib.suppress(ConfigError):
            merge_options(default(), options)


def test_every_committed_configuration_merges():
    from support import ROOT

    files = sorted([*ROOT.glob("configs/datasets/*.yaml"), *ROOT.glob("configs/trainers/**/*.yaml")])
    assert len(files) > 50
    for file in files:
        merge_file(default(), file)
