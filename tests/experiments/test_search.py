"""A sweep that chooses settings by validation images: a grid, Optuna's trials, and never the test."""

import json

import pytest
from support.files import sweep_file
from support.sweeps import fork_steps

from kdpl.common import exits
from kdpl.config.manifest import Manifest
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.sweep import search
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import cells_of
from kdpl.report import main as report
from kdpl.sweep import main
from kdpl.training.results import read_results, write_results

SHORT = {
    "protocol": "few_shot",
    "trainers": "[KDPL_TaskRes]",
    "datasets": "[emoji_photos_meals]",
    "shots": "1",
    "config": "photos",
}
QUICK = """{MODEL.BACKBONE.NAME: emoji_student, TRAINER.KDPL.TEACHER: emoji_teacher, OPTIM.MAX_EPOCH: 2,
  DATALOADER.NUM_WORKERS: 0, TRAINER.TASKRES.PREC: fp32, TRAINER.KDPL.PREC: fp32}"""
GRID = "{by: accuracy, OPTIM.LR: [0.001, 0.05], OPTIM.MAX_EPOCH: [1, 2]}"
RANGES = "{by: agreement, trials: 6, OPTIM.LR: {low: 0.001, high: 0.1, log: true}, OPTIM.MAX_EPOCH: {low: 2, high: 9}}"


def finish(runs, value) -> None:
    """Write the results of trials as if they had run, both on validation and on test images, where they are the opposite."""
    for step in (step for run in runs for step in run.steps):
        run = {"trainer": step.trainer, "backbone": "emoji_student", "seed": step.seed, "shots": step.shots}
        run["manifest"] = Manifest(step.settings, {}).to_dict()
        of = {"dataset": "EmojiPhotosMeals", "classes": "all", "source_domains": [], "target_domains": []}
        of |= {"num_classes": 2, "num_images": 2, "error_rate": 0.0, "macro_f1": 0.0}
        for split, accuracy in ((step.split, value(step)), ("test", 100 - value(step))):
            write_results(step.folder, run, {**of, "split": split, "accuracy": accuracy})


@pytest.mark.slow
@pytest.mark.parametrize("by", ["accuracy", "agreement"])
def test_what_is_best_in_validation_is_trained_and_tested(by, tmp_path, monkeypatch, capsys):
    fork_steps(monkeypatch)
    space = f"{{by: {by}, OPTIM.LR: [0.0001, 0.05]}}"
    file = sweep_file(
        tmp_path, **SHORT, seeds="[1]", options=QUICK, search=space, output=str(tmp_path / "out"), executor="{gpus: 0}"
    )
    assert main([str(file)]) == 0, capsys.readouterr()
    printed, sweep = capsys.readouterr().out, read_sweep(file)
    ((_, trials),) = search.read_trials(sweep).items()
    values = {trial.options[1]: trial.values()[0] for trial in trials}
    assert len(values) == 2 and values["0.0001"] != values["0.05"]
    best = max(values, key=values.get)
    (chosen,) = read_scores([tmp_path / "out"])[0]
    config = read_results(chosen.path)["config"]
    assert f"LR: {float(best)}\n" in config and "SPLIT: test" in config and "trials" not in str(chosen.path)
    line = next(line for line in printed.splitlines() if line.endswith("chosen"))
    assert f"OPTIM.LR {best}" in line and f"{values[best]:.2f}" in line
    tested_on = "val by the teacher" if by == "agreement" else "val"
    results = read_results(trials[0].runs[0].steps[0].folder)["results"]
    assert [entry["split"] for entry in results] == [tested_on], "a trial never sees the test images"
    assert main([str(file)]) == 0 and "0 tried, 0 failed, 3 skipped" in capsys.readouterr().out
    assert report([str(tmp_path / "out")]) == 0 and line in capsys.readouterr().out


def test_a_grid_is_tried_whole_and_the_test_images_do_not_count(tmp_path):
    sweep = read_sweep(sweep_file(tmp_path, **SHORT, seeds="[1, 2]", search=GRID, output=str(tmp_path / "out")))
    search.choose(sweep, lambda runs: finish(runs, lambda step: 10 - float(step.options[-5]) + int(step.options[-3])) and False)
    (cell,) = cells_of(sweep)
    trials = search.read_trials(sweep)
    settings = [tuple(trial.settings.values()) for trial in trials[cell]]
    assert settings == [("0.001", "1"), ("0.001", "2"), ("0.05", "1"), ("0.05", "2")]
    assert search.best_of(sweep, trials)[cell].settings == {"OPTIM.LR": "0.001", "OPTIM.MAX_EPOCH": "2"}
    assert len((sweep.folder / "search.json").read_text()) and "chosen" in search.write_choice(sweep)
    other = read_sweep(
        sweep_file(tmp_path, **SHORT, seeds="[1, 2]", search=GRID.replace("0.05", "0.06"), output=str(tmp_path / "out"))
    )
    with pytest.raises(ValueError, match="is of another search"):
        search.read_trials(other)


def test_trials_of_optuna_go_on_after_a_stop_as_if_there_had_been_none(tmp_path):
    pytest.importorskip("optuna")

    def searched(folder: str, stop_after: int) -> list:
        sweep = read_sweep(sweep_file(tmp_path, **SHORT, seeds="[1]", search=RANGES, output=str(tmp_path / folder)))
        done = []

        def do(runs) -> bool:
            missing = [run for run in runs if not run.done()]
            done.extend(missing)
            if len(done) == stop_after:
                return True
            finish(missing, lambda step: 50 - abs(float(step.options[step.options.index("OPTIM.LR") + 1]) - 0.02))
            return False

        if search.choose(sweep, do):
            assert not search.choose(sweep, do)
        ((_, trials),) = search.read_trials(sweep).items()
        return [trial.options for trial in trials]

    whole = searched("whole", 0)
    assert len(whole) == 6 and whole == searched("stopped", 3)
    assert all(0.001 <= float(o[1]) <= 0.1 and o[3] in "23456789" for o in whole) and len(set(whole)) == 6
    record = json.loads((tmp_path / "whole/sweeps/some/search.json").read_text())
    assert len(record["trials"][0]) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"search": "{by: test, OPTIM.LR: [1]}"}, "search.by: 'test' is not one of accuracy, agreement"),
        ({"search": "{by: agreement, OPTIM.LR: [0.1]}", "trainers": "[TaskRes]"}, "'TaskRes' has no teacher to agree with"),
        ({"search": "{by: accuracy, OPTIM.LRR: [0.1]}"}, "'OPTIM.LRR' is not a configuration key.*Did you mean 'OPTIM.LR'"),
        ({"search": "{by: accuracy, OPTIM.LR: [fast]}"}, "OPTIM.LR is 'fast'"),
        ({"search": "{by: accuracy, TEST.SPLIT: [val, test]}"}, "search.TEST.SPLIT: data and test are no setting to choose"),
        ({"search": "{by: accuracy, OPTIM.LR: {low: 0.1, high: 0.01}}"}, "search.OPTIM.LR is .*expected such as"),
        ({"search": "{by: accuracy, OPTIM.LR: {low: 0.1, high: 0.2}}"}, "has trials '0'.*expected how often to try"),
        ({"search": "{by: accuracy, trials: 3, OPTIM.LR: [0.1]}"}, "has trials '3'.*expected lists of values"),
    ],
)
def test_a_search_that_cannot_be_is_refused_before_anything_starts(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_sweep(sweep_file(tmp_path, **{**SHORT, "seeds": "[1]", **changes}))


def test_a_search_on_slurm_has_to_be_waited_for(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("kdpl.experiments.sweep.slurm.check", lambda: None)
    file = sweep_file(tmp_path, **SHORT, seeds="[1]", search=GRID, output=str(tmp_path / "out"))
    assert main([str(file), "--executor", "slurm"]) == exits.BAD_INPUT
    assert "needs --wait" in capsys.readouterr().err
