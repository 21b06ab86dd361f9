"""The scripts, run for real on the embedded benchmark with one short epoch."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.sweeps import fork_steps

from kdpl.experiments.report.runs import read_scores
from kdpl.sweep import main
from kdpl.training.results import read_results

SCRIPTS = Path(__file__).parents[2] / "scripts"
QUICK = ["--", "OPTIM.MAX_EPOCH", "1", "OPTIM.WARMUP_EPOCH", "-1", "DATALOADER.TRAIN_X.BATCH_SIZE", "30"]
EMOJI = ["--trainer", "CoOp", "--cfg", "emoji", "--datasets", "emoji_meals", "--seeds", "1", "--shots", "1"]

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the sweeps are bash scripts")


def start(script: str, *args: str, cwd: Path, **env: str) -> subprocess.Popen:
    return subprocess.Popen(
        [SCRIPTS / script, *args],
        cwd=cwd,
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def run(script: str, *args: str, cwd: Path, **env: str) -> tuple[int, str]:
    process = start(script, *args, cwd=cwd, **env)
    output, _ = process.communicate(timeout=120)
    return process.returncode, output


@pytest.fixture
def sweep(tmp_path, monkeypatch, capsys):
    """What `run` does, in this process and with forked steps: the flags that a script passes on, without the script."""
    fork_steps(monkeypatch)
    monkeypatch.chdir(tmp_path)

    def run_here(script: str, *args: str, jobs: int = 1, output: object = "o") -> tuple[int, str]:
        protocol, step = script.removesuffix(".sh").split("/")
        steps = [] if step == "all" else ["--steps", step]
        flags = ["--protocol", protocol, "--output", str(output), "--jobs", str(jobs), *steps]
        try:
            status = main([*flags, *args])
        except SystemExit as end:
            status = end.code
        return status, "".join(capsys.readouterr())

    return run_here


@pytest.mark.slow
def test_cross_dataset_tests_only_what_has_no_result_and_only_finished_prompts(tmp_path, sweep):
    args = ["--trainer", "CoOp", "--cfg", "emoji", "--source", "emoji_meals", "--seeds", "1", "--shots", "1"]
    targets = ["--datasets", "emoji_leisure"]
    status, output = run("xd/test.sh", *args, *targets, cwd=tmp_path, OUTPUT="o")
    assert status == 1
    assert "its training has not finished: do that step first" in output

    assert sweep("xd/train.sh", *args, *targets, *QUICK)[0] == 0
    status, output = sweep("xd/test.sh", *args, *targets)
    assert status == 1 and "its prompts were learned with other settings: give the same (" in output
    assert "OPTIM.MAX_EPOCH: 1 in the folder" in output
    status, output = sweep("xd/test.sh", *args, *targets, *QUICK)
    assert status == 0, output
    folder = tmp_path / "o/evaluation_emoji_meals/CoOp/emoji_1shots/seed1"
    first = json.loads((folder / "results.json").read_text())["results"]
    assert [r["dataset"] for r in first] == ["EmojiLeisure"]

    status, output = sweep("xd/test.sh", *args, *targets, "emoji_sky", *QUICK)
    assert status == 0, output
    both = read_results(folder)["results"]
    assert both[0] == first[0], "tested again"
    assert both[1]["dataset"] == "EmojiSky"
    scores, _ = read_scores([tmp_path / "o"])
    assert {score.trained.dataset for score in scores} == {"EmojiMeals"}


@pytest.mark.parametrize("protocol", ["base2new", "xd"])
def test_a_script_without_its_python_or_with_a_wrong_variable_starts_nothing(tmp_path, protocol):
    status, output = run(f"{protocol}/all.sh", cwd=tmp_path, OUTPUT="o", PYTHON="no-such-python")
    assert status == 2 and "There is no command 'no-such-python'" in output
    status, output = run(f"{protocol}/all.sh", cwd=tmp_path, OUTPUT="o", JOBS="0")
    assert status == 2 and "argument --jobs: 0 is not a whole number of at least 1" in output
    assert list(tmp_path.iterdir()) == []


RUNS = [("base2new", "all", [False, True]), ("base2new", "test", [True]), ("xd", "train", [False])]


@pytest.mark.slow
@pytest.mark.parametrize(("protocol", "script", "flags"), RUNS)
def test_variables_are_settings_and_flags_count_more(tmp_path, protocol, script, flags):
    """The commands that a script prints, by variables and by flags."""
    python = tmp_path / "py"
    python.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    variables = {"TRAINER": "KDPL_CoOp", "CFG": "emoji", "SEEDS": "5 6", "SHOTS": "2", "SOURCE": "emoji_meals"}
    variables |= {
        "DATASETS": "emoji_meals",
        "DATA": "data",
        "CLASS_AGNOSTIC": "True",
        "EXTRA": "OPTIM.LR 0.5",
        "PYTHON": str(python),
    }
    options = ["--seeds", "7", "--dry-run", "--", "OPTIM.MAX_EPOCH", "3"]
    status, output = run(f"{protocol}/{script}.sh", *options, cwd=tmp_path, OUTPUT="o", **variables)
    assert status == 0, output
    commands = [line.split() for line in output.splitlines() if not line.startswith("#")]
    assert ["--eval-only" in command for command in commands] == flags
    for command in commands:
        assert command[command.index("--seed") + 1] == "7" and command[command.index("--root") + 1] == str(tmp_path / "data")
        assert command[command.index("--output-dir") + 1].startswith(f"{tmp_path}/o/")
        assert command[-6:] == ["TRAINER.KDPL.CLASS_AGNOSTIC", "True", "OPTIM.LR", "0.5", "OPTIM.MAX_EPOCH", "3"]
        assert command[command.index("DATASET.NUM_SHOTS") + 1] == "2"
