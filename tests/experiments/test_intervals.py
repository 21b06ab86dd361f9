"""Intervals over seeds and classes: what they are made of, and that they are refused rather than wrong."""

from pathlib import Path

import pytest

from kdpl.experiments.report.cells import (
    REPLICATES,
    Cell,
    Draws,
    difference,
    interval,
    replicates_of,
)
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.report.tables import all_tables
from kdpl.report import main
from kdpl.training.results import FILE_NAME, write_results


def cell(right: dict[int | None, list[int]], images: list[int], trained: str = "t", classes: str = "c") -> Cell:
    values = {seed: 100 * sum(r) / sum(images) for seed, r in right.items()}
    return Cell(values, replicates=replicates_of(right, images, trained, classes))


def test_replicates_are_accuracies_of_drawn_seeds_and_classes():
    right, images = {1: [3, 0, 4], 2: [1, 2, 4]}, [4, 2, 4]
    draws = Draws()
    got = cell(right, images).replicates(draws, [1, 2])
    classes = draws.counts(("classes", "c"), 3)
    seeds = draws.counts(("seeds", "t", (1, 2)), 2)
    assert (classes.sum(1) == 3).all() and (seeds.sum(1) == 2).all()
    for r in range(0, REPLICATES, 97):  # the sum written out
        drawn_right = sum(seeds[r, i] * classes[r, c] * right[seed][c] for i, seed in enumerate((1, 2)) for c in range(3))
        drawn_images = sum(seeds[r].sum() * classes[r, c] * images[c] for c in range(3))
        assert got[r] == pytest.approx(100 * drawn_right / drawn_images)


def test_differences_are_paired():
    a = cell({1: [4, 0, 3, 1], 2: [3, 1, 2, 2]}, [4, 4, 4, 4])
    b = cell({1: [3, 0, 2, 1], 2: [2, 1, 1, 2]}, [4, 4, 4, 4])
    paired = difference(a, b).interval(Draws())
    apart = interval(a.replicates(Draws(1), [1, 2]) - b.replicates(Draws(2), [1, 2]))
    assert paired[0] >= 0 and paired[1] - paired[0] < 0.5 * (apart[1] - apart[0])
    assert difference(a, a).interval(Draws()) == (0, 0)


def add(folder: Path, right: str, accuracy: float, trainer: str = "CoOp", seed: int = 1) -> None:
    run = {"trainer": trainer, "backbone": "ViT-B/32", "teacher": None, "class_agnostic": False, "seed": seed, "shots": 1}
    result = {
        "dataset": "EmojiSky", "split": "test", "classes": "all", "source_domains": [], "target_domains": [], "num_classes": 2,
        "num_images": 8, "accuracy": accuracy, "error_rate": 100 - accuracy, "macro_f1": accuracy, "class_names": "ab",
        "right_by_class": right,
    }  # fmt: skip
    write_results(folder, {**run, "config": {"DATASET": {"NAME": "EmojiSky"}}}, result)


def test_the_report_prints_and_writes_intervals(tmp_path, capsys):
    for seed in (1, 2):
        add(tmp_path / f"CoOp/seed{seed}", "1/4 2/4", 37.5, seed=seed)
        add(tmp_path / f"KDPL_CoOp/seed{seed}", "3/4 3/4", 62.5 + 12.5, "KDPL_CoOp", seed)
    assert main([str(tmp_path), "--intervals"]) == 0
    printed = capsys.readouterr().out
    assert "+37.50 [+25.00, +50.00]" in printed and "bootstrap of 2,000 replicates" in printed
    assert main([str(tmp_path), "--intervals", "--format", "csv"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(",2,2,25.0,50.0")
    assert main([str(tmp_path)]) == 0
    assert "+37.50 ± 0.00" in capsys.readouterr().out


def test_damaged_counts_are_refused(tmp_path, capsys):
    add(tmp_path / "CoOp/seed1", "a/4 2/4", 37.5)
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "right_by_class of EmojiSky" in error and str(tmp_path / "CoOp/seed1") in error and "Test again" in error


def test_runs_on_other_classes_have_no_interval_together(tmp_path):
    for seed, names in ((1, "ab"), (2, "cd")):
        add(tmp_path / f"CoOp/seed{seed}", "1/4 2/4", 37.5, seed=seed)
        path = tmp_path / f"CoOp/seed{seed}" / FILE_NAME
        path.write_text(path.read_text().replace('"class_names": "ab"', f'"class_names": "{names}"'))
    (table,) = all_tables(read_scores([tmp_path])[0])
    assert table.rows[0].cells[0].replicates is None
