"""A warm step launches few kernels on a card, and the page says how many."""

import json
import re
import subprocess
import sys

import pytest
from support import ROOT
from support.card import needs_simulated_card

from kdpl.students import STEPPED

TEXT = (650, 800)  # kernels and other operations at most, forward and backward, whatever the number of names
TEXT_ALONE, PROMPTED_IMAGES = (750, 1000), (950, 1150)  # of a whole step, whose image tower is frozen or has prompts
BESIDE_BLOCKS = {"KDPL_MMA": (1200, 1500)}  # three small products more in each layer of both towers


def page_table(name):
    """Return the rows of a written table of the page, numbers as numbers."""
    page = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    head, _, *rows = re.search(f"<!-- {name}: begin -->\n(.*?)\n<!-- {name}: end -->", page, re.DOTALL)[1].split("\n")
    cells = [[cell.strip().replace(",", "") for cell in row.strip("|").split("|")] for row in (head, *rows)]
    values = [[float(cell) if re.fullmatch(r"[\d.]+", cell) else cell for cell in row] for row in cells[1:]]
    return [dict(zip(cells[0], row, strict=True)) for row in values]


@pytest.mark.slow
@needs_simulated_card
def test_a_step_launches_few_kernels_and_the_page_has_the_counts():
    command = [sys.executable, ROOT / "benchmarks/launches.py", "--classes", "10", "--json"]  # as many launches as 100 names
    process = subprocess.run(command, capture_output=True, text=True, check=False)  # the card must come before PyTorch
    assert process.returncode == 0, process.stderr[-3000:]
    counted = {row["a step of"]: (row["kernels"], row["others"]) for row in json.loads(process.stdout.splitlines()[-1])["rows"]}
    bounds = {what: TEXT for what in counted if what.startswith("text pass")}
    assert len(bounds) == 2
    bounds |= {f"KDPL_{l.__name__}": TEXT_ALONE if l.image_features_are_frozen else PROMPTED_IMAGES for l in STEPPED}
    bounds |= BESIDE_BLOCKS
    assert bounds.keys() == counted.keys()
    above = {what: counts for what, counts in counted.items() if any(a > b for a, b in zip(counts, bounds[what], strict=True))}
    assert not above, above
    table = page_table("launches")
    counted = {what.replace(",", ""): counts for what, counts in counted.items()}
    assert {row["a step of"] for row in table} >= {what for what in counted if what.startswith("text pass")} | {"KDPL_CoOp"}
    for row in table:  # of a learner that is new there is none before the next --publish
        what = row["a step of"]
        assert (row["kernels"], row["others"]) == pytest.approx(counted[what], rel=0.02), (
            f"{what}: run benchmarks/launches.py --publish"
        )
