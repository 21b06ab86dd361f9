"""A warm step launches few kernels on a card, and the page says how many."""

import json
import re
import subprocess
import sys

import pytest
from support import ROOT
from support.card import needs_simulated_card, run_tests_on_card

from kdpl.students import LEARNERS

TEXT = (650, 800)  # kernels and other operations at most, forward and backward, whatever the number of names
TEXT_ALONE, PROMPTED_IMAGES = (750, 1000), (950, 1150)  # of a whole step, whose image tower is frozen or has prompts


@pytest.mark.slow
@needs_simulated_card
def test_a_step_launches_few_kernels_and_the_page_has_the_counts():
    command = [sys.executable, ROOT / "benchmarks/launches.py", "--json"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # the card must come before PyTorch
    assert process.returncode == 0, process.stderr[-3000:]
    found = {row["a step of"]: (row["kernels"], row["others"]) for row in json.loads(process.stdout.splitlines()[-1])["rows"]}
    bounds = {what: TEXT for what in found if what.startswith("text pass")}
    assert len(bounds) == 3
    bounds |= {f"KDPL_{l.__name__}": TEXT_ALONE if l.image_features_are_frozen else PROMPTED_IMAGES for l in LEARNERS}
    assert bounds.keys() == found.keys()
    above = {what: counts for what, counts in found.items() if any(a > b for a, b in zip(counts, bounds[what], strict=True))}
    assert not above, above
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (text pass, .+?|KDPL_\w+) +\| +([\d,]+) \| +([\d,]+) \|$", page, re.MULTILINE)
    assert len(table) > 9
    for what, *counts in table:
        published = [int(n.replace(",", "")) for n in counts]
        assert published == pytest.approx(found[what], rel=0.02), f"{what}: run benchmarks/launches.py --publish"


@pytest.mark.slow
@needs_simulated_card
def test_an_optimiser_launches_as_many_kernels_for_all_parameters():
    run_tests_on_card("waits.py", "optimiser")
