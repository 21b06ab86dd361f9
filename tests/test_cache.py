"""`python -m kdpl.cache` fills the cache of views, on any number of ranks, and goes on where it was stopped."""

import pytest
from support import emoji_args
from support.ranks import run_ranks
from support.trainings import build

from kdpl import cache
from kdpl.common import exits

VIEWS = ("TRAINER.KDPL.VIEWS", 2, "DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "DATALOADER.NUM_WORKERS", 0)


def arguments(folder):
    options = (*VIEWS, "TRAINER.KDPL.CACHE_DIR", folder, "DATALOADER.TRAIN_X.BATCH_SIZE", 8)
    return [*emoji_args("KDPL_CoOp", ""), *map(str, options)]


def last_line(printed, folder):
    return printed.splitlines()[-1].removeprefix(f"{folder} ")


def fill_on_ranks(folder):
    process = run_ranks(2, "-m", "kdpl.cache", *arguments(folder), cwd=folder.parent)
    assert process.returncode == 0, process.stderr[-3000:]
    return last_line(process.stdout, folder)


def loaded(trainer, folder, output, **kwargs):
    run = build(trainer, output, *VIEWS, "TRAINER.KDPL.CACHE_DIR", folder, **kwargs)
    run.load_for_training()
    return run.view_features


@pytest.mark.slow
def test_what_ranks_have_filled_is_found_by_variants_and_completed_where_it_was_stopped(tmp_path, monkeypatch, capsys):
    def fill(folder):
        assert cache.main(arguments(folder)) == 0
        return last_line(capsys.readouterr().out, folder)

    monkeypatch.chdir(tmp_path)
    ranks, one = tmp_path / "ranks", tmp_path / "one"
    assert fill_on_ranks(ranks) == "has all 120 features of 2 views; 120 were missing"
    assert fill(one) == "has all 120 features of 2 views; 120 were missing"
    teacher, student = loaded("KDPL_CoCoOp", ranks, tmp_path / "out")
    alone = loaded("KDPL_CoOp", one, tmp_path / "out")
    for features, other in zip((teacher, student), alone, strict=True):
        index, view = other.known.nonzero().T
        assert len(index) == features.known.sum() == 60
        assert features.get(index, view).equal(other.get(index, view)), "the same on 1 rank and on 2"
    next(ranks.rglob("*.safetensors")).unlink()
    assert fill(ranks) == "has all 120 features of 2 views; 60 were missing"
    assert not any(p.name == "log.txt" for p in tmp_path.rglob("*")), "a cache needs no output folder"


@pytest.mark.parametrize(
    ("trainer", "options", "message"),
    [
        ("CoOp", (), "expected a trainer of KDPL (--trainer; 'CoOp' here)"),
        ("KDPL_CoOp", ("TRAINER.KDPL.VIEWS", 2), "a folder as TRAINER.KDPL.CACHE_DIR ('')"),
    ],
)
def test_a_configuration_that_keeps_nothing_is_refused(trainer, options, message, capsys):
    assert cache.main([*emoji_args(trainer, ""), *map(str, options)]) == exits.BAD_INPUT
    assert message in capsys.readouterr().err
