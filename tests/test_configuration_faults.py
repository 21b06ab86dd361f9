"""A mistake in the configuration or the command line is told before data or weights are read, and what to do."""

import builtins
from types import SimpleNamespace

import pytest
from support import ROOT, default, emoji_args

from kdpl import train
from kdpl.common import exits
from kdpl.config import checks
from kdpl.config.keys import ConfigError, choices
from kdpl.config.merging import merge_file, merge_options

MISTAKES = [
    (["--trainer", "KDPL_Coop"], "TRAINER.NAME (--trainer) 'KDPL_Coop' is not one of", "Did you mean 'KDPL_CoOp'?"),
    (["--backbone", "emoji_studnet"], "'emoji_studnet' is not", "Did you mean 'emoji_student'?"),
    (["TRAINER.KDPL.TEACHER", "emoji_techer"], "'emoji_techer' is not", "Did you mean 'emoji_teacher'?"),
    (["TRAINER.KDPL.TEACHER", "ViT-H-14-quickgelu:dfn5"], "'dfn5' in 'ViT-H-14-quickgelu:dfn5'", "Did you mean 'dfn5b'?"),
    (["DATASET.NAME", "EmojiMeels"], "DATASET.NAME (--dataset-config-file) 'EmojiMeels'", "Did you mean 'EmojiMeals'?"),
    (["--dataset-config-file", f"{ROOT}/configs/datasets/emoji_meels.yaml"], "There is no", "Did you mean 'emoji_meals.yaml'?"),
    (["--eval-datasets", "emoji_leasure"], "--eval-datasets 'emoji_leasure'", "Did you mean 'emoji_leisure'?"),
    (["--transforms", "random_flipp", "normalize"], "INPUT.TRANSFORMS 'random_flipp'", "Did you mean 'random_flip'?"),
    (["OPTIM.NAME", "sgdd"], "OPTIM.NAME 'sgdd' is not one of adam", "Did you mean 'sgd'?"),
    (["OPTIM.LR_SCHEDULER", "cosin"], "OPTIM.LR_SCHEDULER 'cosin' is not one of", "Did you mean 'cosine'?"),
    (["OPTIM.WARMUP_TYPE", "const"], "OPTIM.WARMUP_TYPE 'const' is not one of", "Did you mean 'constant'?"),
    (["DATALOADER.TRAIN_X.SAMPLER", "RandomSample"], "DATALOADER.TRAIN_X.SAMPLER 'RandomSample'", "'RandomSampler'?"),
    (["TEST.EVALUATOR", "Clasification"], "TEST.EVALUATOR 'Clasification' is not one of", "Did you mean 'Classification'?"),
    (["TEST.SPLIT", "tset"], "TEST.SPLIT 'tset' is not one of test, val", "Did you mean 'test'?"),
    (["TEST.FINAL_MODEL", "best"], "TEST.FINAL_MODEL 'best' is not one of", "Did you mean 'best_val'?"),
    (["INPUT.INTERPOLATION", "bicubc"], "INPUT.INTERPOLATION 'bicubc' is not one of", "Did you mean 'bicubic'?"),
    (["DATASET.SUBSAMPLE_CLASSES", "bass"], "DATASET.SUBSAMPLE_CLASSES 'bass' is not one of", "Did you mean 'base'?"),
    (["TRAINER.COOP.PREC", "fp_32"], "TRAINER.COOP.PREC 'fp_32' is not one of", "Did you mean 'fp32'?"),
    (["TRAINER.KDPL.LOSS", "symetric"], "TRAINER.KDPL.LOSS 'symetric' is not one of", "Did you mean 'symmetric'?"),
    (["TRAINER.COOP.CLASS_TOKEN_POSITION", "ends"], "CLASS_TOKEN_POSITION 'ends' is not one of", "Did you mean 'end'?"),
    (
        ["TRAINER.KDPL.CLASS_AGNOSTIC", "True", "TRAINER.KDPL.VOCABULARY", "openimage"],
        "VOCABULARY 'openimage'",
        "'openimages'?",
    ),
    (["OPTIM.LRR", "1"], "'OPTIM.LRR' is not a configuration key (on the command line)", "Did you mean 'OPTIM.LR'?"),
    (["OPTIM.LR", "1", "--seed", "2"], "'--seed' comes after the first KEY VALUE pair", "put the flags before the pairs"),
    (["INPUT.SIZE", "(224, 224)"], "INPUT.SIZE (224, 224) is not what MODEL.BACKBONE.NAME 'emoji_student' takes", "(64, 64)"),
    (["TRAINER.COOP.N_CTX", "0", "TRAINER.COOP.CTX_INIT", ""], "TRAINER.COOP.N_CTX is 0", "expected at least 1 token"),
    (["OPTIM.WARMUP_EPOCH", "30"], "OPTIM.WARMUP_EPOCH 30 is more than OPTIM.MAX_EPOCH 5", "Shorten it"),
    (["TRAINER.COOP.CSC", "True", "TRAINER.KDPL.CLASS_AGNOSTIC", "True"], "contradict each other", "Set one of them to False"),
    (["TRAINER.KDPL.CACHE_DIR", "there"], "has nothing to store with VIEWS 0", "set TRAINER.KDPL.VIEWS"),
    (["--eval-only"], "--eval-only with KDPL_CoOp needs the prompts to evaluate", "--model-dir"),
    (["--eval-only", "--model-dir", "/nowhere"], "--model-dir '/nowhere' is missing", "Expected the output folder of a run"),
    (["--eval-only", "--model-dir", str(ROOT)], "No model at", "Expected the output folder of a run in --model-dir"),
    (["--model-dir", str(ROOT)], "belongs to an evaluation: add --eval-only", "MODEL.INIT_WEIGHTS"),
    (["--load-epoch", "5"], "--load-epoch 5 belongs to an evaluation", "add --eval-only"),
    (["--eval-only", "--load-epoch", "5"], "--load-epoch 5 is an epoch of the run in --model-dir", "name its output folder"),
    (["--fresh", "--no-train"], "--fresh is for a training", "drop it"),
    (["--fresh", "--eval-only", "--model-dir", f"{ROOT}/docs", "--output-dir", str(ROOT)], "the prompts of", "choose another"),
    (["--eval-only", "--no-train"], "--eval-only and --no-train contradict each other", "Drop one"),
    (["--eval-only", "--model-dir", str(ROOT), "--resume", str(ROOT)], "--resume", "name the folder in --model-dir"),
    (["--resume", "/nowhere"], "RESUME (--resume) '/nowhere' is not a folder", "expected the output folder of a run"),
    (["MODEL.INIT_WEIGHTS", "/nowhere"], "MODEL.INIT_WEIGHTS '/nowhere' is not a file", "expected a checkpoint of prompts"),
    (["DATASET.CLASSNAMES", "/nowhere.txt"], "There is no class-name file '/nowhere.txt'", "/nowhere.txt"),
    (["DATASET.ON_BAD_IMAGE", "skp"], "DATASET.ON_BAD_IMAGE 'skp' is not one of skip, error", "Did you mean 'skip'?"),
    (["--output-dir", f"{ROOT}/README.md/run"], f"'{ROOT}/README.md' is a file", "Choose another"),
]


@pytest.fixture
def nothing_heavy(monkeypatch):
    """Fails where weights are loaded or a data set is built."""

    def heavy(*args, **kwargs):
        raise AssertionError("a mistake was told too late")

    import kdpl.datasets.emoji.scenes
    import kdpl.trainers.inputs
    import kdpl.trainers.prompts

    monkeypatch.setattr(kdpl.trainers.prompts, "load_clip", heavy)
    monkeypatch.setattr(kdpl.trainers.inputs, "load_clip", heavy)
    monkeypatch.setattr(kdpl.datasets.emoji.scenes, "draw", heavy)
    monkeypatch.setattr("dassl.data.manager.build_dataset", heavy)


@pytest.mark.parametrize(("change", "message", "way_out"), MISTAKES, ids=[" ".join(change)[:50] for change, *_ in MISTAKES])
def test_a_mistake_is_told_before_anything_heavy_is_loaded(change, message, way_out, nothing_heavy, tmp_path, capsys):
    status = train.main([*emoji_args("KDPL_CoOp", tmp_path), *change])
    error = capsys.readouterr().err
    assert status == exits.BAD_INPUT == 2, error
    assert error.startswith("error: ") and message in error and way_out in error


def test_an_unknown_flag_is_answered_with_the_closest(capsys):
    with pytest.raises(SystemExit) as stopped:
        train.parse_args(["--trianer", "KDPL_CoOp", "--seed", "1"])
    assert stopped.value.code == exits.BAD_INPUT
    assert "unrecognized arguments: --trianer. Did you mean '--trainer'?" in capsys.readouterr().err


def test_values_are_checked_without_pytorch(monkeypatch, tmp_path, capsys):
    imported = builtins.__import__

    def no_pytorch(name, *args, **kwargs):
        assert name.partition(".")[0] not in ("torch", "torchvision", "open_clip"), name
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", no_pytorch)
    for change in (["OPTIM.LR", "-1"], ["--eval-only", "--no-train"], ["--resume", "/nowhere"], ["OPTIM.NAME", "sgdd"]):
        assert train.main([*emoji_args("KDPL_CoOp", tmp_path), *change]) == exits.BAD_INPUT
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr().err.count("error: ") == 4


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("OPTIM.LR", 0.0, "a number above 0"),
        ("OPTIM.LR", float("nan"), "a finite number"),
        ("OPTIM.LR", float("inf"), "a finite number"),
        ("OPTIM.MAX_EPOCH", 0, "1 or more"),
        ("OPTIM.MOMENTUM", 1.0, "0 or more and below 1"),
        ("OPTIM.WEIGHT_DECAY", -1e-4, "0 or more"),
        ("DATALOADER.TRAIN_X.BATCH_SIZE", 0, "1 or more"),
        ("DATALOADER.TEST.BATCH_SIZE", -4, "1 or more"),
        ("DATALOADER.NUM_WORKERS", -1, "0 or more"),
        ("DATALOADER.K_TRANSFORMS", 2, "1: a prompt trainer"),
        ("DATASET.NUM_SHOTS", -2, "images per class, or -1 for all"),
        ("SEED", 2**32, r"below 2\*\*32"),
        ("TRAIN.PRINT_FREQ", 0, "1 or more"),
        ("TRAIN.CHECKPOINT_EVERY_MINUTES", -1.0, "0 or more"),
        ("INPUT.SIZE", (64,), r"a value such as \(224, 224\)"),
        ("INPUT.SIZE", (64, 64.5), r"a value such as \(224, 224\)"),
        ("INPUT.SIZE", (0, 0), r"a value such as \(224, 224\)"),
        ("INPUT.PIXEL_MEAN", [0.5, 0.5], "one number for R, G and B"),
        ("INPUT.PIXEL_STD", [0.5, 0.5, 0.0], "all above 0"),
        ("INPUT.PIXEL_STD", [0.5, 0.5, "0.5"], "all above 0"),
        ("INPUT.RRCROP_SCALE", (1.0, 0.5), r"a value such as \(0.08, 1.0\)"),
    ],
)
def test_a_number_out_of_range_is_named_with_its_range(key, value, expected):
    cfg = default()
    checks.check_values(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ConfigError, match=f"^{key} is .*expected .*{expected}"):
        checks.check_values(cfg)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", True, "OPTIM.MOMENTUM", 0.0],
            "SGD_NESTEROV True needs a momentum above 0",
        ),
        (["OPTIM.NAME", "sgd", "OPTIM.SGD_NESTEROV", True, "OPTIM.SGD_DAMPNING", 1], "OPTIM.SGD_DAMPNING is 1"),
        (["OPTIM.STAGED_LR", True], "OPTIM.STAGED_LR is True, but OPTIM.NEW_LAYERS is empty"),
        (["TEST.FINAL_MODEL", "best_val", "TEST.NO_TEST", True], "but TEST.NO_TEST is True"),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(options, message):
    cfg = default()
    cfg.merge_from_list(options)
    with pytest.raises(ConfigError, match=message):
        checks.check_values(cfg)


def test_every_name_that_is_offered_is_known_to_the_engine():
    import torch
    from dassl.data.samplers import build_sampler
    from dassl.data.transforms import build_transform
    from dassl.optim import build_optimizer

    cfg = default()
    for name in choices("OPTIM.NAME"):
        cfg.OPTIM.NAME = name
        assert build_optimizer(torch.nn.Linear(1, 1), cfg.OPTIM)
    for name in choices("INPUT.INTERPOLATION"):
        cfg.INPUT.INTERPOLATION = name
        assert build_transform(cfg)
    for name in choices("DATALOADER.TRAIN_X.SAMPLER")[:2]:  # those that every engine has
        assert list(build_sampler(name, data_source=[SimpleNamespace(label=0, domain=0)])) == [0]


# ------------------------------------------------------------------------------------------------------------ files


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds nothing, expected keys and values"),
        (b"# OPTIM:\n#   LR: 1\n", "holds nothing, expected keys and values"),
        (b"OPTIM:\n\tLR: 0.1\n", "line 2, column 1.* Indent with spaces, not with tabs"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "is not readable YAML"),
        (b"\x00\x01\x02", "is not readable YAML"),
        (b"[" * 5000, "is not readable YAML"),
        (b"OPTIM:\n  LR: 1\n---\nOPTIM:\n  LR: 2\n", "is not readable YAML"),
        (b"OPTIM:\n  LR: 0.1\nSEED: 1\nOPTIM:\n  NAME: sgd\n", "the key 'OPTIM' is given twice, on lines 1 and 4: keep one"),
        (b"OPTIM:\n  LR: 0.1\n  LR: 0.2\n", "the key 'LR' is given twice, on lines 2 and 3"),
        (b"OPTIM: {LR: !!python/object/apply:os.getcwd []}\n", "is not readable YAML"),
        (b"SEED: 1\n1: 2\n", "'1' is not a configuration key"),
    ],
)
def test_a_file_that_is_no_configuration_is_named(content, message, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"(?s){path}.*{message}|{message}.*{path}"):
        merge_file(default(), path)


def test_a_folder_is_no_configuration(tmp_path):
    with pytest.raises(ConfigError, match="is a folder, expected a configuration file"):
        merge_file(default(), tmp_path)


def test_merge_keys_of_yaml_are_no_duplicates(tmp_path):
    (tmp_path / "c.yaml").write_text("OPTIM: &o {LR: 0.1}\nTEST: {SPLIT: val}\n")
    cfg = default()
    merge_file(cfg, tmp_path / "c.yaml")
    assert (cfg.OPTIM.LR, cfg.TEST.SPLIT) == (0.1, "val")


# ------------------------------------------------------------------------------------------------------------ types


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("DATASET.NAME", "123", "123"),
        ("DATASET.NAME", "1e5", "1e5"),
        ("DATASET.NAME", "1.10", "1.10"),
        ("DATASET.NAME", "007", "007"),
        ("DATASET.NAME", "1_000", "1_000"),
        ("DATASET.NAME", "2024-01-02", "2024-01-02"),
        ("DATASET.NAME", "'None'", "None"),
        ("OUTPUT_DIR", "2024_01_02", "2024_01_02"),
        ("OPTIM.LR", "1e-5", 1e-5),
        ("OPTIM.LR", "2", 2.0),
        ("OPTIM.MAX_EPOCH", "1e1", 10),
        ("SEED", "0x10", 16),
        ("INPUT.SIZE", "[64, 64]", (64, 64)),
        ("INPUT.PIXEL_STD", "[.5, 0.5, 1]", [0.5, 0.5, 1]),
        ("INPUT.RRCROP_SCALE", "(0.5, 1)", (0.5, 1)),
    ],
)
def test_a_value_means_what_its_key_is_of(key, text, value, tmp_path):
    nested = "".join(
        f"{'  ' * i}{part}:" + ("\n" if i < key.count(".") else f" {text}\n") for i, part in enumerate(key.split("."))
    )
    (tmp_path / "c.yaml").write_text(nested)
    for merge, source in ((merge_file, tmp_path / "c.yaml"), (merge_options, [key, text])):
        cfg = default()
        merge(cfg, source)
        for part in key.split("."):
            cfg = cfg[part]
        assert cfg == value and type(cfg) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "message"),
    [
        ("DATASET.NAME", "None", "DATASET.NAME is None"),
        ("DATASET.NAME", "True", "is True .*expected a str.*Put the text"),
        ("SEED", "True", "SEED is True .*expected a int"),
        ("OPTIM.LR", "True", "OPTIM.LR is True .*expected a float"),
        ("OPTIM.LR", "10" * 200, "OPTIM.LR is inf, expected a finite number"),
        ("SEED", "010", "SEED is '010' .*expected a int"),
        ("OPTIM.LR", ".inf", "OPTIM.LR is '.inf' .*expected a float"),
        ("OPTIM.LR", "1e999", "OPTIM.LR is inf, expected a finite number"),
        ("USE_CUDA", "0", "USE_CUDA is 0 .*expected a bool"),
        ("USE_CUDA", "yse", "USE_CUDA is 'yse' .*expected a bool"),
        ("INPUT.SIZE", "64", "INPUT.SIZE is 64 .*expected a tuple"),
        ("INPUT.SIZE", "['64', '64']", r"INPUT.SIZE is \('64', '64'\), expected a value such as"),
    ],
)
def test_a_value_of_another_type_is_refused_not_bent(key, text, message, tmp_path):
    cfg = default()
    with pytest.raises(ConfigError, match=message):
        merge_options(cfg, [key, text])
        checks.check_values(cfg)


def test_an_empty_value_of_yaml_is_refused(tmp_path):
    (tmp_path / "c.yaml").write_text("DATASET:\n  NAME:\n")
    with pytest.raises(ConfigError, match=r"DATASET.NAME is None .*expected a str"):
        merge_file(default(), tmp_path / "c.yaml")
