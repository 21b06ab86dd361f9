"""A run that is killed, told to stop, or started twice: nothing is lost, and the end is the same to the last bit."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from support import ROOT, emoji_args, mostly_slow, processes, run_train
from support.trainings import EVERY_STEP, NOUNS, SMALL, Killed, assert_same, build, die_at, parameters

from kdpl.common import exits
from kdpl.training.checkpoint import load_checkpoint
from kdpl.training.progress import DivergenceError

CASES = {
    "KDPL_CoOp": (),
    "KDPL_PromptSRC": (),
    "KDPL_CoCoOp": ("TRAINER.KDPL.VIEWS", 2),
    "MaPLe": (),
    "CoOp": ("OPTIM.NAME", "adam", "DATALOADER.NUM_WORKERS", 2),
}


@pytest.mark.parametrize("trainer", mostly_slow(CASES, sample=("KDPL_CoOp", "KDPL_PromptSRC", "KDPL_CoCoOp")))
def test_a_run_killed_inside_an_epoch_ends_bit_identical(trainer, tmp_path):
    options = (*SMALL, *CASES[trainer])
    unbroken = build(trainer, tmp_path / "unbroken", *options)
    unbroken.train()
    for step in (3, 4, 2):  # the run dies three times, in two epochs
        broken = build(trainer, tmp_path / "broken", *options, *EVERY_STEP)
        die_at(broken, step)
        with pytest.raises(Killed):
            broken.train()
    last = build(trainer, tmp_path / "broken", *options)
    last.train()
    assert_same(parameters(last), parameters(unbroken))
    assert last.progress.rows == unbroken.progress.rows and len(last.progress.rows) == 3
    history = [(tmp_path / name / "history.csv").read_bytes() for name in ("broken", "unbroken")]
    assert history[0] == history[1]
    assert not list((tmp_path / "broken").rglob("resume*")), "what a finished run needs no more is gone"


@pytest.mark.slow
def test_class_agnostic_counts_go_on_inside_an_epoch(tmp_path):
    (tmp_path / "nouns.txt").write_text("\n".join(f"{word} {noun}" for word in ["red", "green", "blue"] for noun in NOUNS))
    nouns = ("TRAINER.KDPL.VOCABULARY", tmp_path / "nouns.txt")
    options = (*SMALL, "TRAINER.KDPL.CLASS_AGNOSTIC", True, *nouns, "TRAINER.KDPL.K_MAX", 20)
    unbroken, broken = (build("KDPL_CoOp", tmp_path / name, *options, *EVERY_STEP) for name in ("unbroken", "broken"))
    unbroken.train()
    die_at(broken, 7)
    with pytest.raises(Killed):
        broken.train()
    build("KDPL_CoOp", tmp_path / "broken", *options).train()
    selected = [(tmp_path / name / "selected_classes.csv").read_bytes() for name in ("broken", "unbroken")]
    assert selected[0] == selected[1]


@pytest.mark.slow
def test_an_unseeded_run_goes_on_with_the_seed_that_it_drew(tmp_path):
    run = build("KDPL_CoOp", tmp_path, *SMALL, *EVERY_STEP, "SEED", -1)
    die_at(run, 3)
    with pytest.raises(Killed):
        run.train()
    other = build("KDPL_CoOp", tmp_path, *SMALL, "SEED", -1)
    assert other.seed != run.seed
    other.train()
    assert other.seed == run.seed


# ---------------------------------------------------------------------------------------------------------- processes


def command(output, *options):
    return [sys.executable, str(ROOT / "train.py"), *emoji_args("KDPL_CoOp", output), *map(str, options)]


def start(output, *options):
    """Start a training in its own process group; return it when it has taken its first steps, and what it has printed."""
    process = processes.Popen(
        command(output, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("epoch ["):
            return process, "".join(lines)
    raise AssertionError("".join(lines[-20:]))


LONG = (
    *("OPTIM.MAX_EPOCH", 6, "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "new"),
    *("TRAIN.PRINT_FREQ", 1, "DATALOADER.TRAIN_X.BATCH_SIZE", 12),
)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    run_train(*emoji_args("KDPL_CoOp", folder), *LONG)
    return folder


def end_state(folder):
    (path,) = folder.rglob("model.pth.tar-6")
    results = json.loads((folder / "results.json").read_text())["results"]
    numbers = [{k: v for k, v in r.items() if k != "time"} for r in results]
    return load_checkpoint(path)["state_dict"], numbers, (folder / "history.csv").read_bytes()


def assert_same_end(a, b):
    (prompts, *rest), (other_prompts, *other_rest) = end_state(a), end_state(b)
    assert_same(prompts, other_prompts)
    assert rest == other_rest


@pytest.mark.parametrize("names", mostly_slow(["SIGTERM SIGUSR1", "SIGINT SIGHUP"], sample=("SIGTERM SIGUSR1",)))
def test_a_signal_to_the_process_group_saves_and_stops_with_its_own_exit_code(names, unbroken, tmp_path):
    """One run is stopped by each signal in turn, and the same command resumes it each time."""
    output = tmp_path / "run"
    for i, (name, workers) in enumerate(zip(names.split(), (2, 0), strict=True)):
        process, before = start(output, *LONG, "DATALOADER.NUM_WORKERS", workers)
        os.killpg(process.pid, getattr(signal, name))
        text = process.stdout.read()
        assert process.wait(60) == exits.INTERRUPTED == 75, text
        assert f"Stopped by {name} after saving: the same command resumes the run\n" in text
        assert "Traceback" not in text
        assert ("Resume from" in before) == (i > 0), before
    again = run_train(*emoji_args("KDPL_CoOp", output), *LONG)
    assert "Resume from" in again.stdout
    assert_same_end(output, unbroken)


# -------------------------------------------------------------------------------------------------------- the pieces


@pytest.mark.parametrize(
    ("trainer", "scaled"),
    [pytest.param("KDPL_CoOp", True, marks=pytest.mark.slow), pytest.param("CoOp", False, marks=pytest.mark.slow)],
)
def test_a_loss_that_is_not_finite_keeps_the_last_good_state(trainer, scaled, tmp_path):
    """Steps are read at the end of the epoch alone here, long after the broken one; amp's scaler passes over such steps."""
    options = (*SMALL, "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.PRINT_FREQ", 5)
    run = build(trainer, tmp_path, *options)
    run.scaler = torch.amp.GradScaler(run.device.type, enabled=scaled)
    compute_loss, seen = run.compute_loss, []

    def broken_at_the_eighth(batch):
        seen.append(batch["impath"])
        loss, terms = compute_loss(batch)
        factor = float("nan") if len(seen) == 8 else 1
        return loss * factor, {**terms, "loss": terms["loss"] * factor}

    run.compute_loss = broken_at_the_eighth
    with pytest.raises(DivergenceError, match="diverged at batch 3 of the epoch: loss is nan") as error:
        run.train()
    assert len(seen) == 10 and all(path in str(error.value) for path in seen[7])
    (newest,) = tmp_path.rglob("checkpoint")
    kept = load_checkpoint(newest.parent / newest.read_text().strip())
    assert kept["epoch"] == 1 and all(torch.isfinite(v).all() for v in kept["state_dict"].values())
    again = build(trainer, tmp_path, *options)
    again.train()
    assert again.finished_epochs == 3


@pytest.mark.slow
def test_a_damaged_state_inside_an_epoch_costs_the_epoch_not_the_run(tmp_path, capsys):
    unbroken = build("KDPL_CoOp", tmp_path / "unbroken", *SMALL)
    unbroken.train()
    broken = build("KDPL_CoOp", tmp_path / "broken", *SMALL, *EVERY_STEP, "TRAIN.CHECKPOINT_FREQ", 1)
    die_at(broken, 7)
    with pytest.raises(Killed):
        broken.train()
    (state,) = (tmp_path / "broken").rglob("resume*")
    state.write_bytes(state.read_bytes()[:500])
    capsys.readouterr()
    last = build("KDPL_CoOp", tmp_path / "broken", *SMALL)
    last.train()
    assert "The run resumes from the last whole epoch" in capsys.readouterr().out
    assert_same(parameters(last), parameters(unbroken))


@pytest.mark.slow
def test_a_diverging_run_names_the_images_keeps_the_last_good_state_and_fails(tmp_path):
    output = tmp_path / "run"
    options = (*LONG, "TRAIN.CHECKPOINT_FREQ", 1, "OPTIM.LR", 1e38, "OPTIM.WARMUP_EPOCH", 2)
    process = run_train(*emoji_args("KDPL_CoOp", output), *options, check=False)
    assert process.returncode == exits.DIVERGED == 3, process.stderr
    assert "The training diverged at batch" in process.stderr and "Traceback" not in process.stderr
    images = [line.strip() for line in process.stderr.splitlines() if line.startswith("  ")]
    assert len(images) == 12 and all(os.path.isfile(path) for path in images)
    (newest,) = output.rglob("checkpoint")
    kept = load_checkpoint(newest.parent / newest.read_text().strip())
    assert kept["epoch"] == 2 and all(torch.isfinite(v).all() for v in kept["state_dict"].values())
