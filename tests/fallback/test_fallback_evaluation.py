"""What the bundled engine's evaluator and optimizers compute."""

import fallback_pieces  # noqa: F401  (before dassl, which it makes importable)
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# isort: split
from dassl.config import get_cfg_default
from dassl.evaluation import Classification, build_evaluator
from dassl.metrics import compute_accuracy
from dassl.optim import build_optimizer


def evaluator() -> Classification:
    return build_evaluator(get_cfg_default(), lab2cname={0: "cat", 1: "dog", 2: "owl"})


def process(target: Classification, predictions: list[int], labels: list[int], classes: int = 3) -> None:
    target.process(torch.eye(classes)[predictions], torch.tensor(labels))


def test_results_are_printed_as_the_forks_parsers_read_them(capsys):
    target = evaluator()
    process(target, [0] * 853 + [1] * 147, [0] * 1000)
    capsys.readouterr()
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


@pytest.mark.parametrize("name", ["adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw"])
def test_every_optimizer_moves_all_parameters(name):
    cfg = get_cfg_default().OPTIM
    cfg.NAME, model = name, torch.nn.Linear(2, 1)
    before = [p.clone() for p in model.parameters()]
    model(torch.ones(4, 2)).square().mean().backward()
    build_optimizer(model, cfg).step()
    assert all(not torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    cfg.NAME = name.upper()
    with pytest.raises(ValueError, match=f"OPTIM.NAME '{name.upper()}' .*'{name}'"):
        build_optimizer(model, cfg)


def test_accuracy_counts_labels_among_the_highest_logits():
    logits = torch.tensor([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 2.0, 3.0], [1.0, 3.0, 2.0]])
    labels = torch.tensor([0, 1, 2, 0])
    assert [a.item() for a in compute_accuracy(logits, labels, topk=(1, 2, 3))] == [50.0, 75.0, 100.0]
    assert compute_accuracy((logits, "features"), labels)[0].shape == (1,)
