"""Samples of the exhaustive scripts in tests/faults, which docs/reliability.md names."""

import re
import sys

import pytest
from support import RATE, ROOT, processes

pytestmark = pytest.mark.slow


def run(script, *args):
    command = [sys.executable, str(ROOT / "tests/faults" / script), *map(str, args)]
    process = processes.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert process.returncode == 0, process.stdout[-3000:] + process.stderr[-3000:]
    return process.stdout


def test_a_changed_key_is_refused_or_harmless():
    keys = ("OPTIM.LR", "TRAINER.NAME", "TEST.SPLIT", "TRAINER.KDPL.MAX_TEXT_ROWS")
    printed = run("settings.py", "--keys", *keys)
    assert re.search(rf"OPTIM\.LR: {RATE} -> \S+: refused", printed)
    assert "TEST.SPLIT: 'test' -> 'val': harmless" in printed
    assert "0 settings could be mixed in silence" in printed
