"""Sweeps from a file or from flags: keys and values, commands and folders, and real runs on this machine."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from support import ROOT, processes
from support.files import EIGHT, sweep_file
from support.sweeps import fork_steps

from kdpl.common import exits, outputs
from kdpl.common.safe_text import read_json
from kdpl.config.keys import ConfigError
from kdpl.config.manifest import Manifest
from kdpl.experiments.sweep import plan, work
from kdpl.experiments.sweep.plan import read_sweep
from kdpl.experiments.sweep.runs import Resources, Run, Step, Sweep, config_of, runs_of
from kdpl.sweep import main
from kdpl.training.results import write_results


def finish(step: Step, **more: object) -> None:
    """Write the results of a step as if it had run, and started over; `more` is added to them."""
    if step.stale():
        (step.folder / "results.json").unlink()
    for dataset in step.datasets:
        result = {
            **dict.fromkeys(("num_classes", "num_images"), 30),
            **dict.fromkeys(("error_rate", "macro_f1"), 50.0),
            **{"accuracy": 40.0 + step.seed, "split": step.split, "source_domains": [], "target_domains": step.domains},
            **more,
        }
        run = {"trainer": step.trainer, "backbone": "emoji_student", "seed": step.seed, "shots": step.shots}
        run |= {"config_name": step.config_file.stem, "model_dir": str(step.model_dir) if step.model_dir else None}
        run["manifest"] = Manifest(step.settings, {}).to_dict()
        name = "".join(word.capitalize() for word in dataset.split("_"))
        run["config"] = {"DATASET": {"NAME": name, "SUBSAMPLE_CLASSES": step.classes}}
        write_results(step.folder, run, {**result, "dataset": name, "classes": step.classes})


@pytest.mark.slow
@pytest.mark.parametrize("example", sorted(p.name for p in (ROOT / "configs/sweeps").glob("*.yaml")))
def test_the_examples_are_sweeps(example, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep(ROOT / "configs/sweeps" / example)
    runs = runs_of(sweep)
    sources = sweep.source if sweep.protocol == "xd" else sweep.datasets
    assert len(runs) == len(sweep.trainers) * len(sources) * len(sweep.seeds) * len(sweep.shots) > 1
    assert all(step.folder.is_absolute() and tmp_path in step.folder.parents for run in runs for step in run.steps)
    assert sweep.executor.time >= 30 and sweep.executor.memory.endswith("G")


def test_the_page_has_every_key_and_its_example_is_a_sweep(tmp_path):
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    example, _ = re.findall(r"```yaml\n(.*?)```", page, re.S)
    assert read_sweep(sweep_file(tmp_path, example)).executor.time == 120
    section = page[page.index("## Many runs") :]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    told = [name for cell in cells for name in re.findall(r"`(\w+)`", cell)]
    keys = [*Sweep.__dataclass_fields__, *Resources.__dataclass_fields__]
    assert sorted(told) == sorted(set(keys) - {"name"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trainer": "[CoOp]"}, "'trainer' is not one of.*Did you mean 'trainers'"),
        ({"executor": "{partitoin: gpu}"}, "executor.*'partitoin' is not one of.*Did you mean 'partition'"),
        ({"protocol": "base2old"}, "protocol: 'base2old' is not one of.*Did you mean 'base2new'"),
        ({"trainers": "[KDPL_Coop]"}, "trainers: 'KDPL_Coop' is not one of.*Did you mean 'KDPL_CoOp'"),
        ({"datasets": "[emoji_meels]"}, "datasets: 'emoji_meels' is not one of.*Did you mean 'emoji_meals'"),
        ({"datasets": ""}, "'datasets' is missing in"),
        ({"seeds": "[1, 1]"}, "given twice"),
        ({"config": "emojis"}, "CoOp has no configuration 'emojis'.*Did you mean 'emoji'"),
        ({"options": "{OPTIM.MAX_EPOCHS: 1}"}, "'OPTIM.MAX_EPOCHS' is not a configuration key.*Did you mean 'OPTIM.MAX_EPOCH'"),
        ({"options": "{OPTIM: {LR: fast}}"}, "OPTIM.LR is 'fast'"),
        ({"class_agnostic": "true"}, "class_agnostic: 'CoOp' has no class-agnostic mode"),
        ({"source": "imagenet"}, "expected 'source' only with xd"),
        ({"executor": "{time: 1:00:00}"}, "executor.time is '1:00:00', expected a whole number"),
        ({"executor": "gpu"}, "executor.* is 'gpu', expected keys"),
        ({"executor": "{cpus: many}"}, "executor.cpus is 'many', expected a whole number"),
        ({"steps": "[tset]"}, "steps of base2new: 'tset' is not one of train, test.*Did you mean 'test'"),
        ({"steps": "test", "protocol": "few_shot"}, "steps of few_shot: 'test' is not one of train"),
    ],
)
def test_a_wrong_key_or_value_is_named_with_the_closest(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_sweep(sweep_file(tmp_path, **changes))


def test_values_of_options_reach_the_command_line_as_they_are_written(tmp_path):
    text = "{DATASET.CLASSNAMES: , OPTIM.LR: 1e-5, INPUT.TRANSFORMS: [normalize], TRAINER: {KDPL: {CLASS_AGNOSTIC: false}}}"
    (run, *_) = runs_of(read_sweep(sweep_file(tmp_path, options=text)))
    for step in run.steps:
        assert step.command()[-8:] == [
            "DATASET.CLASSNAMES", "", "OPTIM.LR", "1e-5",
            "INPUT.TRANSFORMS", "['normalize']", "TRAINER.KDPL.CLASS_AGNOSTIC", "false",
        ]  # fmt: skip


VIT = "vit_b32_c2_ep20_batch4_4+4ctx"
AGNOSTIC = "TRAINER.KDPL.CLASS_AGNOSTIC True "


# Folders and commands are those of CoOp and its forks; results of years lie there.
@pytest.mark.parametrize(
    ("protocol", "trainer", "config", "source", "agnostic", "config_file", "train", "test"),
    [
        ("base2new", "CoOp", "emoji", "", "", "CoOp/emoji", "base2new/train_base/emoji_meals/shots_4/CoOp/emoji/seed2",
         "base2new/test_new/emoji_meals/shots_4/CoOp/emoji/seed2"),
        ("base2new", "KDPL_PromptSRC", "vit_b32", "", AGNOSTIC, f"KDPL_PromptSRC/{VIT}",
         f"base2new/train_base/emoji_meals/shots_4/KDPL_PromptSRC-CA/{VIT}/seed2",
         f"base2new/test_new/emoji_meals/shots_4/KDPL_PromptSRC-CA/{VIT}/seed2"),
        ("base2new", "ZeroshotTeacher", "emoji", "", "", "KDPL_CoOp/emoji",
         "base2new/train_base/emoji_meals/shots_4/ZeroshotTeacher/emoji/seed2",
         "base2new/test_new/emoji_meals/shots_4/ZeroshotTeacher/emoji/seed2"),
        ("xd", "KDPL_PromptSRC", "vit_b32", "imagenet", AGNOSTIC, f"KDPL_PromptSRC/{VIT}_cross_datasets",
         f"imagenet/KDPL_PromptSRC-CA/{VIT}_cross_datasets_4shots/seed2",
         f"evaluation/KDPL_PromptSRC-CA/{VIT}_cross_datasets_4shots/seed2"),
        ("xd", "ZeroshotCLIP", "rn50", "emoji_meals", "", "CoOp/rn50_ctxv1", "emoji_meals/ZeroshotCLIP/rn50_ctxv1_4shots/seed2",
         "evaluation_emoji_meals/ZeroshotCLIP/rn50_ctxv1_4shots/seed2"),
        ("few_shot", "PromptSRC", "vit_b16", "emoji_meals", "", "PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets",
         "emoji_meals/PromptSRC/vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets_4shots/seed2", ""),
    ],
)  # fmt: skip
@pytest.mark.parametrize("by_flags", [False, True])
def test_commands_and_folders_are_those_of_the_forks(
    tmp_path, capsys, by_flags, protocol, trainer, config, source, agnostic, config_file, train, test
):
    datasets = {"base2new": ["emoji_meals"], "xd": ["emoji_mammals", "emoji_vehicles"], "few_shot": [source]}[protocol]
    if by_flags:
        argv = ["--protocol", protocol, "--trainer", trainer, "--cfg", config, "--datasets", *datasets, "--seeds", "2"]
        argv += ["--shots", "4", "--class-agnostic", str(int(bool(agnostic))), "--data", "/DATA", "--output", str(tmp_path)]
        argv += ["--source", source] if protocol == "xd" else []
        argv += ["--dry-run", "--", "OPTIM.MAX_EPOCH", "3"]
    else:
        text = f"protocol: {protocol}\ntrainers: {trainer}\ndatasets: [{', '.join(datasets)}]\nseeds: 2\nshots: 4\n"
        text += f"config: {config}\nclass_agnostic: {bool(agnostic)}\noptions: {{OPTIM.MAX_EPOCH: 3}}\n"
        text += f"source: {source}\n" if protocol == "xd" else ""
        argv = [str(sweep_file(tmp_path, text)), "--data", "/DATA", "--output", str(tmp_path), "--dry-run"]
    assert main(argv) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]

    def command(flags: str, dataset: str, folder: str, options: str) -> str:
        return (
            f"{sys.executable} {ROOT}/train.py {flags}--root /DATA --seed 2 --trainer {trainer} "
            f"--dataset-config-file {ROOT}/configs/datasets/{dataset}.yaml "
            f"--config-file {ROOT}/configs/trainers/{config_file}.yaml --output-dir {tmp_path}/{folder} "
            f"DATASET.NUM_SHOTS 4 {options}{agnostic}OPTIM.MAX_EPOCH 3"
        )

    classes = "DATASET.SUBSAMPLE_CLASSES {} " if protocol == "base2new" else ""
    others = f"--eval-datasets {' '.join(datasets)} " if protocol == "xd" else ""
    expected = [command("", source or datasets[0], train, f"{classes.format('base')}TRAIN.CHECKPOINT_FREQ 1 ")]
    if test:
        flags = f"--eval-only --model-dir {tmp_path}/{train} {others}"
        expected.append(command(flags, datasets[0], test, classes.format("new")))
    assert printed == expected


def test_learned_prompts_are_tested_again_on_other_domains_and_on_base_classes(tmp_path, monkeypatch):
    """Results on other domains in the same folder are not those that are missing, either way."""
    keys = {"output": str(tmp_path / "out")}
    (first, *_) = runs_of(read_sweep(sweep_file(tmp_path, **keys)))
    again = {"steps": "[test, test_base]", "options": "{DATASET.TARGET_DOMAINS: [noto, fluent]}", **keys}
    (run, *_) = runs_of(read_sweep(sweep_file(tmp_path, **again)))
    new, base = run.steps
    assert (new.classes, base.classes) == ("new", "base") and new.folder == first.steps[1].folder
    assert base.folder.parts[-7:-5] == ("base2new", "test_base") and base.model_dir == first.steps[0].folder
    finish(first.steps[0])
    assert base.training.ended(), "its training has a result on other domains"
    finish(new)
    assert not new.missing() and first.steps[1].missing() and base.missing()
    finish(first.steps[1])
    finish(base)
    assert run.done() and first.done()
    with pytest.raises(ConfigError, match=r"steps of xd: 'test_base' is not one of train, test"):
        read_sweep(sweep_file(tmp_path, protocol="xd", steps="test_base"))


def test_a_dry_run_prints_the_commands_of_what_is_not_finished(tmp_path, capsys):
    file = sweep_file(tmp_path, output=str(tmp_path / "out"))
    first, second, *_ = runs = runs_of(read_sweep(file))
    for step in (*first.steps, second.steps[0]):
        finish(step)
    assert main([str(file), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert f"# {first.label}" not in printed
    commands = [line for line in printed.splitlines() if line.startswith(sys.executable)]
    assert len(commands) == 5 and "--eval-only" in commands[0]
    assert printed.endswith(f"# {len(runs) - 1} to do, 1 finished before\n")
    assert not (tmp_path / "out/sweeps").exists()


@pytest.mark.slow
def test_status_is_of_files_processes_and_records(tmp_path, capsys):
    file = sweep_file(tmp_path, output=str(tmp_path / "out"))
    sweep = read_sweep(file)
    finished, failed, running, killed = runs = runs_of(sweep)
    for step in finished.steps:
        finish(step)
    work.write_record(sweep, failed, "failed", "a full disk (all of it: console.txt)")
    work.write_record(sweep, running, "running")
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        process.wait()
    work.write_record(sweep, killed, "running")
    record = work.record_file(sweep, killed)
    record.write_text(record.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {process.pid}'))
    states = work.states(sweep, runs)
    assert [state.name for state in states] == ["finished", "failed", "running", "waiting"]
    assert [state.active for state in states] == [False, False, True, False]
    assert main(["status", str(file)]) == exits.FAILED
    printed = capsys.readouterr().out
    assert "a full disk (all of it: console.txt)" in printed and "it was killed" in printed
    assert printed.endswith("1 finished, 1 running, 1 failed, 1 waiting\n")


def fake_run(tmp_path: Path, monkeypatch, *codes: str) -> Run:
    """Return a run whose process ends, one time after the other, as the given lines of Python say; then it is finished."""
    (run, *_) = runs_of(read_sweep(sweep_file(tmp_path, output=str(tmp_path / "out"))))
    run = replace(run, steps=run.steps[:1])
    left = list(codes)
    monkeypatch.setattr(Step, "missing", lambda step: ["emoji_meals"] if left else [])
    monkeypatch.setattr(Step, "command", lambda step: [sys.executable, "-c", left.pop(0)])
    return run


KILLED = "import os, signal; os.kill(os.getpid(), signal.SIGUSR1)"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "restarts", "status", "reason"),
    [
        (("exit(75)", KILLED, ""), 2, 0, ""),
        (("exit(75)", KILLED, ""), 1, exits.INTERRUPTED, "it was killed by SIGUSR1"),
        (("exit(75)",), 0, 0, ""),  # the signal came after the results
        (("exit(4)", "exit(4)", ""), 0, 0, ""),
        (("print('error: no')\nexit(2)", ""), 5, exits.BAD_INPUT, "error: no"),
        (("import os; print('Loading'); os.kill(os.getpid(), 9)", ""), 5, -9, "it was killed by SIGKILL"),
        (("", ""), 5, exits.FAILED, "without a result on emoji_meals"),
    ],
)
def test_what_is_interrupted_or_occupied_is_tried_again_and_a_failure_is_not(
    codes, restarts, status, reason, tmp_path, monkeypatch
):
    monkeypatch.setattr(work, "RETRY_S", 0.01)
    run = fake_run(tmp_path, monkeypatch, *codes)
    outcome = work.work(run, work.Stop(), os.environ, restarts)
    assert outcome.status == status and reason in outcome.reason


def test_slurm_may_signal_twice_and_ctrl_c_twice_means_it():
    stop = work.Stop()
    for number in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM):
        stop.take(number)
        assert not stop.again
    stop = work.Stop()
    stop.take(signal.SIGINT)
    assert not stop.again
    stop.take(signal.SIGINT)
    assert stop.again


@pytest.mark.slow
def test_a_failed_run_stops_no_other_is_named_with_its_log_and_is_tried_again(tmp_path, monkeypatch, capsys):
    file = sweep_file(tmp_path, output=str(tmp_path / "out"), trainers="[CoOp]")
    first, second = runs = runs_of(read_sweep(file))
    broken = [first.steps[0].folder]

    def command(step):
        if step.folder in broken:
            return [sys.executable, "-c", "print('error: no disk'); exit(2)"]
        finish(step)
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(plan, "_check", lambda sweep: None)  # it reads the commands
    monkeypatch.setattr(Step, "command", command)
    assert main([str(file)]) == exits.FAILED
    printed = capsys.readouterr().out
    assert f"{second.label}: finished after" in printed and "2 tried, 1 failed, 0 skipped" in printed
    assert f"  {first.label}: error: no disk (all of it: {broken[0]}/console.txt)" in printed
    report = tmp_path / "out/sweeps/some/report.txt"
    assert "(1/2 seeds)" in report.read_text()
    broken.clear()
    assert main([str(file)]) == 0
    assert "1 tried, 0 failed, 1 skipped" in capsys.readouterr().out
    assert "41.50 ± 0.50" in report.read_text()
    assert [state.name for state in work.states(read_sweep(file), runs)] == ["finished"] * 2


# ----------------------------------------------------------------------------- Slurm, without one: see tests/slurm, too


@pytest.fixture
def fake_slurm(tmp_path, monkeypatch):
    """Commands in the place of Slurm's: what they are given is in the folder, and `squeue` prints the file of that name."""
    for name, does in {
        "sbatch": 'cp "$1" submitted.sh; echo "Submitted batch job 7"',
        "srun": "",
        "squeue": "cat queue",
    }.items():
        script = tmp_path / "bin" / name
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\ncd '{tmp_path}' && {{ {does or ':'}; }}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "queue").write_text("")
    return tmp_path


@pytest.mark.slow
def test_a_job_array_asks_for_what_the_file_says_and_runs_this_python(fake_slurm, capsys):
    asked = "{time: 120, memory: 32G, partition: gpu, gpus: 1, cpus: 8, account: lab, constraint: a100, max_parallel: 3}"
    file = sweep_file(fake_slurm, output=str(fake_slurm / "out"), executor=asked)
    first, *others = runs_of(read_sweep(file))
    for step in first.steps:
        finish(step)
    assert main([str(file), "--executor", "slurm"]) == 0
    printed = capsys.readouterr().out
    assert "Submitted 3 runs as job 7" in printed and "1 finished before" in printed
    script = (fake_slurm / "submitted.sh").read_text()
    flags = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    expected = "time=120 mem=32G partition=gpu gpus-per-node=1 cpus-per-task=8 account=lab constraint=a100 array=0-2%3"
    assert {*expected.split(), "requeue", "signal=USR1@120"} <= flags
    assert f"{sys.executable} -u -m submitit" in script and f"export PYTHONPATH={ROOT}" in script
    records = [work.read_record(read_sweep(file), run) for run in others]
    assert [(record["state"], record["job"]) for record in records] == [("submitted", f"7_{i}") for i in range(3)]

    (fake_slurm / "queue").write_text("7_0 RUNNING\n7_1 PENDING\n8_0 RUNNING\n")
    work.write_record(read_sweep(file), others[2], "running", job="7_2")
    assert main(["status", str(file)]) == exits.FAILED
    printed = capsys.readouterr().out
    states = [" ".join(line.split()) for line in printed.splitlines()]
    assert f"{others[0].label} running job 7_0, RUNNING" in states and f"{others[1].label} waiting job 7_1, PENDING" in states
    assert any(line.startswith(f"{others[2].label} failed job 7_2 ended without a record of why") for line in states)

    assert main([str(file), "--executor", "slurm"]) == 0  # what is in the queue is not submitted again
    printed = capsys.readouterr().out
    assert "Submitted 1 runs" in printed and "2 in the queue before" in printed


def run_job(folder: Path, task: int) -> subprocess.Popen:
    """Start a submitted job as Slurm would: the process of submitit, with Slurm's variables."""
    slurm = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": str(task), "SLURM_JOB_NUM_NODES": "1"}
    slurm |= {"SLURM_JOB_NODELIST": "here", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
    slurm |= {
        "SUBMITIT_EXECUTOR": "slurm",
        "SUBMITIT_PREEMPT_SIGNAL": "USR1",
        "SLURM_CPUS_PER_TASK": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-u", "-m", "submitit.core._submit", str(folder / "jobs")]
    return subprocess.Popen(command, env={**os.environ, **slurm}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.mark.slow
def test_a_job_saves_and_is_requeued_when_its_time_is_over_and_then_finishes_its_run(fake_slurm):
    file = sweep_file(fake_slurm, EIGHT, output=str(fake_slurm / "out"), trainers="CoOp", seeds="1")
    sweep = read_sweep(file)
    first, _ = runs_of(sweep)
    assert main([str(file), "--executor", "slurm"]) == 0
    (fake_slurm / "bin/scontrol").write_text(f'#!/bin/sh\necho "$@" >>"{fake_slurm}/requeued"\n')
    (fake_slurm / "bin/scontrol").chmod(0o755)

    job = run_job(sweep.folder, 0)
    wait_for_training(first.steps[0], job)
    assert work.read_record(sweep, first) | {"state": "running", "job": "7_0"} == work.read_record(sweep, first)
    job.send_signal(signal.SIGUSR1)
    printed, _ = job.communicate(timeout=120)
    assert (fake_slurm / "requeued").read_text() == "requeue 7_0\n", printed
    assert work.states(sweep, [first]) == [work.State("waiting", work.read_record(sweep, first)["reason"])]

    job = run_job(sweep.folder, 0)
    printed, _ = job.communicate(timeout=120)
    assert job.returncode == 0 and first.done(), printed
    assert "Resume from" in (first.steps[0].folder / "console.txt").read_text()


def test_a_run_that_is_redone_is_not_submitted_twice(fake_slurm, capsys):
    keys = {"trainers": "[CoOp]", "seeds": "[1]", "data": "", "output": str(fake_slurm / "out")}
    file = sweep_file(fake_slurm, **keys, options="{OPTIM.LR: 0.01}")
    (run,) = runs_of(read_sweep(file))
    for step in run.steps:
        finish(step)
    file = sweep_file(fake_slurm, **keys, options="{OPTIM.LR: 0.02}")
    assert main([str(file), "--executor", "slurm"]) == exits.FAILED
    assert "Submitted" not in capsys.readouterr().out
    assert main([str(file), "--executor", "slurm", "--redo"]) == 0
    assert "Submitted 1 runs as job 7" in capsys.readouterr().out
    (fake_slurm / "queue").write_text(f"{work.read_record(read_sweep(file), run)['job']} PENDING\n")
    assert main([str(file), "--executor", "slurm", "--redo"]) == 0
    printed = capsys.readouterr().out
    assert "Submitted" not in printed and "1 in the queue before" in printed
    (fake_slurm / "queue").write_text("")
    for step in runs_of(read_sweep(file))[0].steps:
        finish(step)
    assert main([str(file), "--executor", "slurm", "--wait"]) == 0
    printed = capsys.readouterr().out
    assert "EmojiMeals" in printed and "0 tried, 0 failed, 1 skipped" in printed


def test_without_submitit_or_slurm_the_error_says_what_to_do(tmp_path, monkeypatch, capsys):
    file = sweep_file(tmp_path, output=str(tmp_path / "out"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main([str(file), "--executor", "slurm"]) == exits.BAD_INPUT
    assert "found no 'sbatch'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", None)
    assert main([str(file), "--executor", "slurm"]) == exits.BAD_INPUT
    assert "pip install 'kdpl[sweep]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------- real runs


def start(file: Path) -> subprocess.Popen:
    return processes.Popen(
        [sys.executable, "-m", "kdpl.sweep", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
    )


def is_training(step: Step) -> bool:
    console = step.folder / "console.txt"
    return console.is_file() and "epoch [1/1]" in console.read_text()


def wait_for_training(step: Step, sweep: subprocess.Popen) -> None:
    while not is_training(step):
        assert sweep.poll() is None, sweep.communicate()[0]
        time.sleep(0.01)


@pytest.mark.slow
def test_runs_go_on_after_ctrl_c_and_a_preemption_to_the_complete_report(tmp_path, monkeypatch, capsys):
    file = sweep_file(tmp_path, EIGHT, output=str(tmp_path / "out"), datasets="emoji_meals")
    sweep = read_sweep(file)
    first, _, third, *_ = runs = runs_of(sweep)

    process = start(file)
    wait_for_training(first.steps[0], process)
    process.send_signal(signal.SIGINT)
    before, _ = process.communicate(timeout=60)
    assert process.returncode == exits.INTERRUPTED, before
    assert "the same command resumes them" in before
    console = first.steps[0].folder / "console.txt"
    assert "Stopped by SIGTERM after saving" in console.read_text()
    assert work.states(sweep, [first])[0] == work.State("waiting", work.read_record(sweep, first)["reason"])

    fork_steps(monkeypatch)
    folder, over = third.steps[0].folder, threading.Event()

    def preempt():
        while not is_training(third.steps[0]) and not over.is_set():
            time.sleep(0.01)
        os.kill(read_json(folder / outputs.HOLDER)["pid"], signal.SIGUSR1)

    preemption = threading.Thread(target=preempt)
    preemption.start()
    try:
        returned = main([str(file)])
    finally:
        over.set()
        preemption.join()
    printed = capsys.readouterr().out
    assert returned == 0, printed
    assert (before + printed).count(": finished after") == len(runs) == 4
    for run in (first, third):
        assert "Resume from" in (run.steps[0].folder / "console.txt").read_text()
    report = (sweep.folder / "report.txt").read_text()
    assert report.strip() in printed and "seeds)" not in report and "over seeds 1, 2" in report
    assert (sweep.folder / "report.csv").is_file() and "| data set" in (sweep.folder / "report.md").read_text()
    assert {state.name for state in work.states(sweep, runs)} == {"finished"}


def test_runs_of_other_options_are_listed_never_reported_and_redone_when_asked_to(tmp_path, capsys):
    """The options of a sweep change after its runs have finished."""
    text = {"trainers": "[CoOp]", "seeds": "[1]", "options": "{OPTIM.LR: 0.01}"}
    file = sweep_file(tmp_path, data="", output=str(tmp_path / "out"), **text)
    (run,) = runs_of(read_sweep(file))
    for step in run.steps:
        finish(step)
    assert run.done() and not run.stale()
    file = sweep_file(tmp_path, data="", output=str(tmp_path / "out"), **{**text, "options": "{OPTIM.LR: 0.02}"})
    (changed,) = runs_of(read_sweep(file))
    assert not changed.done() and changed.stale() == ["OPTIM.LR: 0.01 in the folder, 0.02 now"]
    assert main([str(file)]) == exits.FAILED
    printed = capsys.readouterr().out
    assert "Made with other settings, so neither counted nor reported (--redo does them again" in printed
    assert f"  {changed.label}: OPTIM.LR: 0.01 in the folder, 0.02 now" in printed and "41.0" not in printed
    assert main(["status", str(file)]) == exits.FAILED
    assert "stale" in capsys.readouterr().out
    assert main([str(file), "--dry-run", "--redo"]) == 0
    commands = capsys.readouterr().out.splitlines()
    assert "--fresh" in commands[1] and "OPTIM.LR 0.02" in commands[1], commands


def test_a_test_of_other_prompts_than_the_training_has_now_is_done_again(tmp_path):
    keys = {"trainers": "[CoOp]", "seeds": "[1]", "data": "", "output": str(tmp_path / "out")}
    train, test = runs_of(read_sweep(sweep_file(tmp_path, **keys)))[0].steps
    for step in (train, test):
        finish(step)
    assert not test.missing()
    file = test.folder / "results.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "prompts": "others"}))
    assert test.missing() == ["emoji_meals"] and "--fresh" in test.command()


def test_a_new_learner_with_labels_takes_the_settings_of_its_twin_unless_it_has_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr("kdpl.experiments.sweep.runs.CONFIGS", tmp_path)
    for name in ("KDPL_New", "KDPL_Other", "Other"):
        (tmp_path / "trainers" / name).mkdir(parents=True)
        (tmp_path / "trainers" / name / "emoji.yaml").touch()
    found = {trainer: config_of(trainer, "emoji", "base2new").parent.name for trainer in ("New", "KDPL_New", "Other")}
    assert found == {"New": "KDPL_New", "KDPL_New": "KDPL_New", "Other": "Other"}
