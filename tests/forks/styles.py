"""Every style of a trainer (tests/fork_styles.py), of which the suite tries some: `python -m pytest tests/forks/styles.py`."""

import fork_styles
import pytest
from support.forks import check_learns, check_resumed, encode_few_sentences


@pytest.fixture(autouse=True)
def few_sentences(monkeypatch):
    encode_few_sentences(monkeypatch)


@pytest.mark.parametrize("style", fork_styles.STYLES)
def test_a_trainer_learns_without_labels(style, tmp_path, capsys):
    check_learns(style, tmp_path, capsys)


@pytest.mark.parametrize("style", fork_styles.STYLES)
def test_a_run_that_stops_after_an_epoch_is_resumed_bit_identical(style, tmp_path):
    check_resumed(style, tmp_path)
