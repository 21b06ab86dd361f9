"""The same seed on the same machine gives the same prompts and results to the last bit, however they come about.

Not promised: the same bits with another number of CPU threads, on another machine or on another version of PyTorch.
"""

import json

import pytest
import torch
from support import emoji_args, mostly_slow, own_cache, run_train
from support.trainings import NOUNS, SMALL, assert_same, build, parameters

from kdpl.training.checkpoint import load_checkpoint

TESTED = (*SMALL, "TEST.NO_TEST", False)


def outcome(run, output):
    """Train, and return the prompts, the course of the training and the numbers of the test."""
    run.train()
    return parameters(run), *written(output)


def written(output):
    (result,) = json.loads((output / "results.json").read_text())["results"]
    return (output / "history.csv").read_bytes(), {key: value for key, value in result.items() if key != "time"}


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("trainer", mostly_slow(["KDPL_PromptSRC", "CoOp"], sample=("KDPL_PromptSRC",)))
def test_any_number_of_loader_workers_gives_the_same_prompts_and_results(trainer, tmp_path):
    """Each run has its own folder, too."""
    outputs = {workers: tmp_path / f"{workers} workers" for workers in (0, 3)}
    found = [outcome(build(trainer, o, *TESTED, "DATALOADER.NUM_WORKERS", workers), o) for workers, o in outputs.items()]
    assert_same(found[1][0], found[0][0])
    assert found[1][1:] == found[0][1:]


@pytest.mark.slow
def test_what_ran_before_in_the_process_is_of_no_account(tmp_path):
    """The generators' states, and what a test or another trainer has drawn from them, change nothing."""
    first = outcome(build("KDPL_MaPLe", tmp_path / "a", *TESTED), tmp_path / "a")
    build("KDPL_VPT", tmp_path / "other", *SMALL, seed=5).train()
    run = build("KDPL_MaPLe", tmp_path / "b", *TESTED)
    run.test()  # draws from the generators, as the start of the workers does
    (tmp_path / "b" / "results.json").unlink()  # of prompts that were not trained
    torch.rand(7)
    found = outcome(run, tmp_path / "b")
    assert_same(found[0], first[0])
    assert found[1] == first[1]


@pytest.mark.slow
def test_processes_of_other_hash_seeds_and_folders_end_the_same(tmp_path):
    """Class-agnostic and with views: names are counted in dictionaries and sets, images stand in tables by name."""
    (tmp_path / "nouns.txt").write_text("\n".join(f"{word} {noun}" for word in ["red", "green", "blue"] for noun in NOUNS))
    options = (
        *("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 2, "TRAINER.KDPL.VIEWS", 2),
        *("TRAINER.KDPL.CLASS_AGNOSTIC", True, "TRAINER.KDPL.VOCABULARY", tmp_path / "nouns.txt", "TRAINER.KDPL.K_MAX", 20),
    )
    prompts, found = [], []
    for i, (output, workers) in enumerate([(tmp_path / "a", 0), (tmp_path / "deep" / "er" / "b", 2)]):
        args = (*emoji_args("KDPL_CoOp", output), *options, "DATALOADER.NUM_WORKERS", workers)
        run_train(*args, cwd=tmp_path, PYTHONHASHSEED=str(i), KDPL_CACHE=own_cache(output / "cache"))
        prompts.append(load_checkpoint(output / "prompt_learner" / "model.pth.tar-2")["state_dict"])
        found.append((*written(output), (output / "selected_classes.csv").read_bytes()))
    assert_same(*prompts)
    assert found[0] == found[1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="TRAIN.DETERMINISTIC is about GPUs")
@pytest.mark.parametrize("precision", ["fp16", "fp32"])
def test_a_deterministic_run_on_a_gpu_is_repeated_to_the_last_bit(precision, tmp_path):
    options = (*TESTED, "TRAIN.DETERMINISTIC", True, "TRAINER.PROMPTSRC.PREC", precision, "TRAINER.KDPL.PREC", precision)
    try:
        found = [outcome(build("KDPL_PromptSRC", tmp_path / name, *options), tmp_path / name) for name in "ab"]
    finally:
        torch.use_deterministic_algorithms(False)
    assert_same(found[0][0], found[1][0])
    assert found[0][1:] == found[1][1:]
