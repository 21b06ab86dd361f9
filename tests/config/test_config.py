"""Configurations merge as the forks' do; a mistake is reported before data or weights are read, with what to do."""

import pytest
from support import ROOT, default, emoji_args

from kdpl import train
from kdpl.common import exits
from kdpl.config import checks
from kdpl.config.defaults import leaves, merge_file, merge_options, merged_cfg
from kdpl.config.keys import KEYS, UNREAD, ConfigError, Range


def test_every_key_stands_in_the_table_and_its_default_is_among_its_values():
    cfg = dict(leaves(merged_cfg((), {}, [])))
    assert {key for key in cfg if not key.startswith("TRAINER.") or key in KEYS} == {*KEYS, *UNREAD}
    assert {key.influence for key in KEYS.values()} == {"matters", "rounds", "harmless"}
    for name, key in KEYS.items():
        assert cfg[name] == key.default and type(cfg[name]) is type(key.default)
        assert key.values is None or (
            key.values.fits(key.default) if isinstance(key.values, Range) else key.default in key.values
        )


# ----------------------------------------------------------------------------------------------------- types and files


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("OPTIM.LR", "1e-5", 1e-5),
        ("OPTIM.STEPSIZE", "[3, 6]", (3, 6)),
        ("DATASET.SOURCE_DOMAINS", "twemoji", ("twemoji",)),
        ("DATASET.NAME", "1.10", "1.10"),
        ("TRAINER.COOP.CTX_INIT", "a photo of a", "a photo of a"),
        ("TRAINER.KDPL.TEACHER_LOGIT_SCALE", "50", "50"),
        ("TRAINER.PROMPTSRC.GPA_MEAN", "6.5", 6.5),
        ("TRAINER.KDPL.CLASS_AGNOSTIC", "True", True),
    ],
)
def test_a_value_becomes_the_type_of_its_key(key, text, value, tmp_path):
    nested = "".join(
        f"{'  ' * i}{part}:" + ("\n" if i < key.count(".") else f" {text}\n") for i, part in enumerate(key.split("."))
    )
    (tmp_path / "c.yaml").write_text(nested)
    for merge, source in ((merge_file, tmp_path / "c.yaml"), (merge_options, [key, text])):
        cfg = default()
        merge(cfg, source)
        found = dict(leaves(cfg))[key]
        assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["OPTIM.LRR", "0.1"], r"'OPTIM.LRR' is not a configuration key \(on the command line\). Did you mean 'OPTIM.LR'"),
        (["OPTIM", "sgd"], "OPTIM is a group of keys"),
        (["OPTIM.LR"], "'OPTIM.LR' has no value"),
        (["OPTIM.LR", "fast"], "OPTIM.LR is 'fast' .*: expected a float, such as 0.0003"),
        (["USE_CUDA", "1"], "USE_CUDA is '1' .*: expected a bool"),
        (["DATASET.NAME", "True"], "is 'True' .*expected a str"),
    ],
)
def test_what_does_not_fit_is_named_with_the_closest(options, message):
    cfg = default()
    with pytest.raises(ConfigError, match=message):
        merge_options(cfg, options)
        checks.check_values(cfg)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds 'None', expected keys and values"),
        (b"OPTIM:\n\tLR: 0.1\n", "line 2, column 1"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is not readable YAML"),
        (b"OPTIM: {LR: !!python/object/apply:os.getcwd []}\n", r"OPTIM.LR is \[\]"),
        (b"OPTIM:\n  LRR: 1", r"'OPTIM.LRR' is not a configuration key \(in '.*c.yaml'\)"),
    ],
)
def test_a_broken_file_is_named(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s){path}.*{message}|{message}.*{path}|{message}"):
        merge_file(default(), path)
    with pytest.raises(ConfigError, match=r"There is no configuration file .*d\.yaml'. Did you mean 'c\.yaml'"):
        merge_file(default(), tmp_path / "d.yaml")
    with pytest.raises(ConfigError, match=r"is not readable YAML: .* is not a regular file"):
        merge_file(default(), tmp_path)


def test_every_committed_configuration_merges():
    files = sorted([*ROOT.glob("configs/datasets/*.yaml"), *ROOT.glob("configs/trainers/**/*.yaml")])
    assert len(files) > 50
    for file in files:
        merge_file(default(), file)


# -------------------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("OPTIM.LR", 0.0, "a number above 0"),
        ("OPTIM.LR", float("nan"), "a finite number"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 0, "1 or more"),
        ("SEED", 2**32, r"below 2\*\*32"),
        ("INPUT.SIZE", (64, 64.5), r"a value such as \(224, 224\)"),
        ("TRAINER.KDPL.TEMPERATURE", -1.0, "a number above 0"),
        ("TRAINER.KDPL.K_MAX", 1, "at least 2 names a batch"),
        ("TRAINER.KDPL.TEACHER_LOGIT_SCALE", "none", "`student`, `own` or a number above 0"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_range(key, value, expected):
    cfg = default()
    checks.check_values(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=f"^{key} is .*expected .*{expected}"):
        checks.check_values(cfg)


# -------------------------------------------------------------------------------------------------------- the command

MISTAKES = [
    (["--trainer", "KDPL_Coop"], "TRAINER.NAME (--trainer) 'KDPL_Coop' is not one of", "Did you mean 'KDPL_CoOp'?"),
    (["--backbone", "emoji_studnet"], "'emoji_studnet' is not", "emoji_student"),
    (["--dataset-config-file", f"{ROOT}/configs/datasets/emoji_meels.yaml"], "There is no", "Did you mean 'emoji_meals.yaml'?"),
    (
        ["TRAINER.KDPL.CLASS_AGNOSTIC", "True", "TRAINER.KDPL.VOCABULARY", "openimage"],
        "VOCABULARY 'openimage'",
        "'openimages'?",
    ),
    (["OPTIM.LR", "1", "--seed", "2"], "'--seed' comes after the first KEY VALUE pair", "put the flags before the pairs"),
    (["INPUT.SIZE", "(224, 224)"], "INPUT.SIZE (224, 224) is not what MODEL.BACKBONE.NAME 'emoji_student' takes", "(64, 64)"),
    (["TRAINER.COOP.N_CTX", "0", "TRAINER.COOP.CTX_INIT", ""], "TRAINER.COOP.N_CTX is 0", "expected at least 1 token"),
    (["OPTIM.WARMUP_EPOCH", "30"], "OPTIM.MAX_EPOCH is 5, expected", "the 30 of OPTIM.WARMUP_EPOCH"),
    (["TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", "True"], "but TEST.NO_TEST is True", "Set it to False"),
    (["TRAINER.KDPL.CACHE_DIR", "there"], "has nothing to store with VIEWS 0", "set TRAINER.KDPL.VIEWS"),
    (["--eval-only"], "--eval-only with KDPL_CoOp needs the prompts to evaluate", "--model-dir"),
    (["--eval-only", "--model-dir", str(ROOT)], "No model at", "Expected the output folder of a run in --model-dir"),
    (["--model-dir", str(ROOT)], "belongs to an evaluation: add --eval-only", "MODEL.INIT_WEIGHTS"),
    (["--fresh", "--eval-only", "--model-dir", f"{ROOT}/docs", "--output-dir", str(ROOT)], "the prompts of", "choose another"),
    (["--eval-only", "--no-train"], "--eval-only and --no-train contradict each other", "Drop one"),
    (["--resume", "/nowhere"], "RESUME (--resume) '/nowhere' is not a folder", "expected the output folder of a run"),
    (["--output-dir", f"{ROOT}/README.md/run"], f"'{ROOT}/README.md' is a file", "Choose another"),
]


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Fails where weights are loaded or a data set is built."""

    def heavy(*args, **kwargs):
        raise AssertionError("a mistake was reported too late")

    import kdpl.datasets.emoji.scenes
    import kdpl.trainers.prompts
    import kdpl.trainers.teachers

    monkeypatch.setattr(kdpl.trainers.prompts, "load_clip", heavy)
    monkeypatch.setattr(kdpl.trainers.teachers, "load_clip", heavy)
    monkeypatch.setattr(kdpl.datasets.emoji.scenes, "draw", heavy)
    monkeypatch.setattr("dassl.data.manager.build_dataset", heavy)


@pytest.mark.parametrize(("change", "message", "way_out"), MISTAKES, ids=[" ".join(change)[:50] for change, *_ in MISTAKES])
def test_a_mistake_is_reported_before_anything_heavy_is_loaded(change, message, way_out, nothing_heavy, tmp_path, capsys):
    status = train.main([*emoji_args("KDPL_CoOp", tmp_path), *change])
    error = capsys.readouterr().err
    assert status == exits.BAD_INPUT == 2, error
    assert error.startswith("error: ") and message in error and way_out in error


def test_an_unknown_flag_is_answered_with_the_closest(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.parse_args(["--trianer", "KDPL_CoOp", "--seed", "1"])
    assert stopped.value.code == exits.BAD_INPUT
    assert "unrecognized arguments: --trianer. Did you mean '--trainer'?" in capsys.readouterr().err
