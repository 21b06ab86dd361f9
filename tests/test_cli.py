"""The command line: the forks' flags, from process start to results."""

import json

import pytest
from support import emoji_args, run_train

TINY = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a finished run and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    return folder, run_train(*emoji_args("KDPL_CoOp", folder), *TINY, cwd=folder).stdout


@pytest.mark.slow
def test_a_run_leaves_log_checkpoint_results_and_curves(trained):
    folder, printed = trained
    assert "Dassl: bundled engine of KDPL" in printed or "Dassl: installed" in printed
    assert "* accuracy: " in (folder / "log.txt").read_text()
    assert (folder / "prompt_learner" / "model.pth.tar-2").is_file()
    assert list((folder / "tensorboard").iterdir())
    results = json.loads((folder / "results.json").read_text())
    assert results["trainer"] == "KDPL_CoOp" and results["teacher"] == "emoji_teacher" and results["seed"] == 1
    assert results["epoch"] == 2 and results["config_name"] == "emoji" and results["model_dir"] is None
    assert results["learned_parameters"] == 4 * 128 and results["train_seconds"] > 0
    assert f"* accuracy: {results['results'][0]['accuracy']:.1f}%" in printed


@pytest.mark.slow
def test_eval_only_tests_trained_prompts_on_new_classes_and_other_data_sets(trained, tmp_path):
    folder, _ = trained
    args = emoji_args("KDPL_CoOp", tmp_path)
    common = ["--eval-only", "--model-dir", folder, "--load-epoch", 2]
    run_train(*args, *common, "DATASET.SUBSAMPLE_CLASSES", "new")
    run_train(*args, *common, "--eval-datasets", "emoji_leisure", "emoji_sky", "OPTIM.LR", "0.1")
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["epoch"] == 2 and written["model_dir"] == str(folder)
    results = written["results"]
    assert [(r["dataset"], r["classes"], r["num_classes"]) for r in results] == [
        ("EmojiMeals", "new", 30),
        ("EmojiLeisure", "all", 77),
        ("EmojiSky", "all", 39),
    ]
