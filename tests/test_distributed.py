"""Several processes train and evaluate on the CPU as one does; the real torchrun starts those that a signal stops."""

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from support import ROOT, emoji_args, mostly_slow, run_train
from support.ranks import environment, run_ranks, start_ranks, torchrun

from kdpl.common import distributed
from kdpl.common.exits import INTERRUPTED
from kdpl.training.checkpoint import load_checkpoint

# 30 images in batches of 7: a rank of four has 1 or 2 of them. 240 test images in batches of 50, the last of 40.
SMALL = (
    *("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2, "TRAIN.PRINT_FREQ", 4),
    *("OPTIM.WARMUP_EPOCH", -1),  # the first epoch moves the prompts enough for a lost share to show
    *("DATALOADER.TRAIN_X.BATCH_SIZE", 7, "DATALOADER.TEST.BATCH_SIZE", 50, "DATALOADER.NUM_WORKERS", 0),
)


def train(ranks, trainer, output, *options, check=True):
    process = run_ranks(ranks, ROOT / "train.py", *emoji_args(trainer, output), *SMALL, *options)
    assert not check or process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return process


def end(output):
    (path,) = Path(output).rglob("model.pth.tar-[24]")
    (result,) = json.loads((Path(output) / "results.json").read_text())["results"]
    history = [{k: float(v) for k, v in row.items()} for row in csv.DictReader((Path(output) / "history.csv").open())]
    return load_checkpoint(path)["state_dict"], result, history


def assert_close(a, b, bound=5e-5):  # prompts move by 0.01 to 0.4
    (prompts, result, history), (other_prompts, other_result, other_history) = end(a), end(b)
    for row, other in zip(history, other_history, strict=True):
        assert row == pytest.approx(other, abs=bound, rel=bound)
    for name, value in prompts.items():
        torch.testing.assert_close(value, other_prompts[name], atol=bound, rtol=1e-4)
    counts = [(r["num_images"], r["num_classes"]) for r in (result, other_result)]
    assert counts == [(240, 30), (240, 30)]
    assert result["accuracy"] == pytest.approx(other_result["accuracy"], abs=100 / 240 + 1e-9)  # one image at the border


CASES = {
    "plain": (2, "KDPL_CoOp", ()),
    "four ranks, shared classes": (4, "KDPL_PromptSRC", ("TRAINER.KDPL.SHARD_CLASSES", True)),
    "views, shared classes": (2, "KDPL_CoOp", ("TRAINER.KDPL.VIEWS", 1, "TRAINER.KDPL.SHARD_CLASSES", True)),
    "class-agnostic": (
        *(2, "KDPL_CoCoOp"),
        ("TRAINER.KDPL.CLASS_AGNOSTIC", True, "TRAINER.KDPL.VOCABULARY", "{nouns}", "TRAINER.KDPL.K_MAX", 5),
    ),
}


@pytest.mark.parametrize("case", mostly_slow(CASES, sample=("views, shared classes", "class-agnostic")))
def test_ranks_train_and_evaluate_as_one_process_does(case, tmp_path):
    ranks, trainer, options = CASES[case]
    nouns = tmp_path / "nouns.txt"
    nouns.write_text("apple\nbread\ncake\nfish\nhorse\nlamp\nonion\npizza\ntrain\ntree\n")
    options = [str(o).format(nouns=nouns) for o in options]
    process = train(ranks, trainer, tmp_path / "ranks", *options)
    run_train(*emoji_args(trainer, tmp_path / "one"), *SMALL, *options)
    assert_close(tmp_path / "ranks", tmp_path / "one")
    assert process.stdout.count("Finish training") == 1, "one rank prints"
    assert [p.name for p in (tmp_path / "ranks").glob("log.txt*")] == ["log.txt"], "one rank writes"


@pytest.mark.slow
def test_a_signal_stops_all_ranks_after_saving_and_a_lost_rank_ends_the_job(tmp_path):
    # Four epochs: from a GPU, lines are read at the end of each, where alone several ranks save.
    options = ("OPTIM.MAX_EPOCH", 4, "TRAIN.PRINT_FREQ", 1, "TRAIN.CHECKPOINT_EVERY_MINUTES", 1e-9)
    train(2, "KDPL_CoOp", tmp_path / "unbroken", *options)
    output = tmp_path / "run"
    args = [ROOT / "train.py", *emoji_args("KDPL_CoOp", output), *SMALL, *options]
    log = output.parent / "log.txt"

    def wait_for_training(process):
        while "\nepoch [" not in log.read_text():
            assert process.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)

    with log.open("w") as file:
        process = subprocess.Popen(torchrun(2, *args), stdout=file, stderr=file, env=environment())
    wait_for_training(process)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGUSR1)  # to one of them: they agree
    assert process.wait(60) != 0
    assert "Stopped by" in log.read_text() and f"exitcode  : {INTERRUPTED}" in log.read_text()

    with log.open("w") as file, start_ranks(2, *args, stdout=file, stderr=file) as (first, second):
        wait_for_training(first)
        second.kill()  # without torchrun, which would end the other
        assert first.wait(60) != 0

    process = train(2, "KDPL_CoOp", output, *options)
    assert "Resume from" in process.stdout
    assert_close(output, tmp_path / "unbroken")


@pytest.mark.parametrize(
    ("ranks", "here", "cards", "backend"),
    [
        (2, 2, 0, "gloo"), (2, 2, 1, "gloo"), (2, 2, 2, "cuda:nccl,cpu:gloo"), (8, 4, 4, "cuda:nccl,cpu:gloo"),
        (8, 4, 2, "gloo"), (2, None, 1, "gloo"),
    ],
)  # fmt: skip
def test_ranks_that_share_a_gpu_exchange_through_gloo(ranks, here, cards, backend, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if here is not None:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(here))
    assert distributed._backend(cards) == backend


@pytest.mark.parametrize(("count", "world"), [(10, 4), (2, 3), (7, 1)])
def test_ranks_share_items_evenly_and_leave_none_out(count, world, monkeypatch):
    monkeypatch.setattr(distributed, "world", lambda: world)
    shares = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(range(count))[distributed.share(count)])
    assert [i for share in shares for i in share] == list(range(count))
    assert [len(share) for share in shares] == distributed.share_lengths(count)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
