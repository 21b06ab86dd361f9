"""Waits of the host for the simulated card, by the line that causes them:
tests/trainers/test_synchronisation.py runs these tests on one."""

import re
from collections import Counter

import pytest
from support import ROOT
from support.devices import on
from support.trainings import SMALL, build

import simulated_card

IN_PROCESS = ("DATALOADER.NUM_WORKERS", 0, "TRAINER.KDPL.PREC", "fp32", "TRAINER.COOP.PREC", "fp32")


def files(waits):
    """Return waits by kind and file."""
    found = Counter()
    for (kind, line), count in waits.items():
        found[kind, line.split(":")[0]] += count
    return dict(found)


@pytest.fixture
def epochs():
    """A function that trains and returns the waits of each epoch."""

    def waits_of(run):
        found, run_epoch = [], run.run_epoch

        def counted():
            with simulated_card.counted() as counts:
                run_epoch()
            found.append(files(counts.waits))

        run.run_epoch = counted
        run.train()
        return found

    return waits_of


@pytest.mark.parametrize(("every", "size", "reads"), [(1000, 6, 1), (1, 6, 1), (1, 2, 2)], ids=["few", "each", "many"])
def test_lines_are_read_once_an_interval(every, size, reads, epochs, tmp_path, capsys):
    """Epochs of 5 or 15 batches, each of which is printed: the first has, in addition, what is sent to the card once."""
    run = build("KDPL_CoOp", tmp_path, *SMALL, *IN_PROCESS, *on("cuda"), "TRAIN.PRINT_FREQ", every,
                "DATALOADER.TRAIN_X.BATCH_SIZE", size, "OPTIM.MAX_EPOCH", 2)  # fmt: skip
    _, last = epochs(run)
    assert last == {("copy to the CPU", "kdpl/training/progress.py"): reads}
    lines = re.findall(r"^epoch \[\d/2\] batch \[\d+/\d+\] time [\d.]+ \([\d.]+\) data .* loss ([\d.]+) \(.* lr .* eta .*$",
                       capsys.readouterr().out, re.M)  # fmt: skip
    assert len(lines) == 2 * len(run.train_loader_x) and len(set(lines)) > 5


def test_views_written_cold(epochs, tmp_path):
    run = build("KDPL_CoOp", tmp_path, *SMALL, *IN_PROCESS, *on("cuda"), "TRAINER.KDPL.VIEWS", 2,
                "TRAINER.KDPL.CACHE_DIR", tmp_path / "cache", "OPTIM.MAX_EPOCH", 3)  # fmt: skip
    _, cold, warm = epochs(run)
    assert cold == warm == {("copy to the CPU", "kdpl/training/progress.py"): 1}
    assert not any(features.unknown for features in run.view_features)


@pytest.mark.parametrize("learner", ["CoOp", "KgCoOp"])
def test_class_agnostic_steps_read_the_selected_names(learner, epochs, tmp_path):
    """Once a step; the prompts of new names go to the card through pinned memory."""
    vocabulary = ("TRAINER.KDPL.VOCABULARY", ROOT / "tests/golden/vocab120.txt", "TRAINER.KDPL.K_MAX", 20)
    run = build(f"KDPL_{learner}", tmp_path, *SMALL, *IN_PROCESS, *on("cuda"), "TRAINER.KDPL.CLASS_AGNOSTIC", True, *vocabulary,
                "OPTIM.MAX_EPOCH", 2)  # fmt: skip
    _, last = epochs(run)
    reads = {"kdpl/distill/objective.py": len(run.train_loader_x), "kdpl/training/progress.py": 1}
    assert last == {("copy to the CPU", file): count for file, count in reads.items()}


@pytest.mark.parametrize("evaluator", ["own", "other"])
def test_an_evaluation(evaluator, tmp_path):
    results = []
    for device in ("cuda", "cpu"):
        run = build("KDPL_CoOp", tmp_path / device, *IN_PROCESS, *on(device), "DATALOADER.TEST.BATCH_SIZE", 8)
        del run.test_loader.dataset.data_source[60:]
        if evaluator == "other":  # it sees the logits of each batch, as before
            run.evaluator.__class__ = type("Other", (type(run.evaluator),), {})
        run.test()
        with simulated_card.counted() as counts:
            run.test()
        results.append(run.last_result)
        reads = {("copy to the CPU", file): 1 for file in ("trainers/evaluation.py", "kdpl/common/tensor_files.py")}
        reads |= {("copy to the CPU", "kdpl/fallback/dassl/evaluation.py"): 2} if evaluator == "other" else {}
        assert files(counts.waits) == (reads if device == "cuda" else {})
    assert results[0] == results[1] and results[0]["num_images"] == 60
