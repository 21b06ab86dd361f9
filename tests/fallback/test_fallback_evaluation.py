"""What the bundled engine's evaluator computes, prints and saves."""

import re

import fallback_pieces  # noqa: F401  (before dassl, which it makes importable)
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# isort: split
from dassl.config import get_cfg_default
from dassl.evaluation import Classification, build_evaluator

NAMES = {0: "cat", 1: "dog", 2: "owl"}


def evaluator(*overrides) -> Classification:
    cfg = get_cfg_default()
    cfg.merge_from_list(["VERBOSE", False, *overrides])
    return build_evaluator(cfg, lab2cname=NAMES)


def process(target: Classification, predictions: list[int], labels: list[int], classes: int = 3) -> None:
    target.process(torch.eye(classes)[predictions], torch.tensor(labels))


def test_results_are_printed_as_the_forks_parsers_read_them(capsys):
    target = evaluator()
    process(target, [0] * 853 + [1] * 147, [0] * 1000)
    results = target.evaluate()
    assert capsys.readouterr().out.splitlines() == [
        "=> result",
        "* total: 1,000",
        "* correct: 853",
        "* accuracy: 85.3%",
        "* error: 14.7%",
        "* macro_f1: 92.1%",
    ]
    assert list(results) == ["accuracy", "error_rate", "macro_f1"]
    assert results["accuracy"] == pytest.approx(85.3)
    assert results["error_rate"] == pytest.approx(14.7)


def f1(predictions: list[int], labels: list[int], c: int) -> float:
    both = list(zip(predictions, labels, strict=True))
    hits = sum(p == c == l for p, l in both)
    precision = hits / max(predictions.count(c), 1)
    recall = hits / labels.count(c)
    return 2 * precision * recall / (precision + recall) if hits else 0.0


@settings(suppress_health_check=[HealthCheck.too_slow])  # on a busy machine
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
def test_macro_f1_is_the_mean_over_the_classes_that_have_images(pairs):
    predictions, labels = (list(x) for x in zip(*pairs, strict=True))
    target = evaluator()
    process(target, predictions, labels, classes=5)
    expected = [f1(predictions, labels, c) for c in set(labels)]
    assert target.evaluate()["macro_f1"] == pytest.approx(100 * sum(expected) / len(expected))


def test_each_class_has_its_result_where_that_is_asked_for(capsys):
    target = evaluator("TEST.PER_CLASS_RESULT", True)
    process(target, [0, 0, 1, 2], [0, 0, 0, 2])
    results = target.evaluate()
    lines = capsys.readouterr().out.splitlines()
    assert lines[6:] == [
        "=> per-class result",
        "* class: 0 (cat)\ttotal: 3\tcorrect: 2\tacc: 66.7%",
        "* class: 2 (owl)\ttotal: 1\tcorrect: 1\tacc: 100.0%",
        "* average: 83.3%",
    ]
    assert results["perclass_accuracy"] == pytest.approx(100 * (2 / 3 + 1) / 2)
    assert sum(bool(re.search(r"\* accuracy: ([\.\deE+-]+)%", line)) for line in lines) == 1


def test_the_confusion_matrix_is_saved_with_labels_as_rows(tmp_path, capsys):
    target = evaluator("TEST.COMPUTE_CMAT", True, "OUTPUT_DIR", str(tmp_path / "run"))
    process(target, [0, 1, 1, 2], [0, 0, 0, 2])
    target.evaluate()
    matrix = torch.load(tmp_path / "run" / "cmat.pt", weights_only=True)
    assert torch.allclose(matrix, torch.tensor([[1 / 3, 2 / 3, 0], [0, 0, 0], [0, 0, 1]]))
