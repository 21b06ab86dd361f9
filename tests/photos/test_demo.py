"""`kdpl fit --demo` as a newcomer runs it: it speaks at once and all the time, and ends with the gain that the guide shows."""

import os
import re
import subprocess
import sys
import time

import pytest
from support import ROOT, processes

SHOWN = (ROOT / "docs/figures/demo.txt").read_text(encoding="utf-8")
LONGEST_SILENCE = 20.0  # seconds, of a machine that others use too


def test_the_first_line_comes_before_pytorch_is_imported():
    code = "import sys, kdpl.photos.fit; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_guide_shows_what_the_demo_printed():
    guide = (ROOT / "docs/your_photos.md").read_text(encoding="utf-8")
    assert f"```text\n{SHOWN}```" in guide


@pytest.mark.slow
def test_the_demo_ends_with_a_clear_gain_and_is_never_silent(tmp_path):
    env = {**os.environ, "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "kdpl", "fit", "--demo", "-o", str(tmp_path)]
    process = processes.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=env)
    lines, gaps, last = [], [], time.monotonic()
    for line in process.stdout:
        lines.append(line)
        gaps.append(time.monotonic() - last)
        last = time.monotonic()
    assert process.wait() == 0 and max(gaps) < LONGEST_SILENCE
    printed, names = "".join(lines), os.listdir(tmp_path / "photos")
    assert all(re.fullmatch(r"IMG_\d{4}\.png", name) for name in names) and len(names) == 1200
    labels = r"^(?:used)? +(\S.*?) {2,}\d+\.\d ± "
    assert re.findall(labels, printed, re.M) == re.findall(labels, SHOWN, re.M)
    gain, within = map(float, re.search(r"\(([+-]\d+\.\d) ± (\d+\.\d) points\)", printed).groups())
    assert gain > 25 and gain > 3 * within
    right = [float(x) for x in re.findall(r"^(?:With|Accuracy).*?: (\d+\.\d) % of 480 photos", printed, re.M)]
    assert len(right) == 2 and right[1] > right[0] + 35
