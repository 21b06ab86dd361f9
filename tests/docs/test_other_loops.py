"""docs/other_loops.md, run as printed: in each loop the loss falls, and nothing but what is learned moves."""

import re
import shutil
import subprocess
import sys
from importlib.metadata import distributions

import pytest
import torch
from support import ROOT

from kdpl.clip import load_clip
from kdpl.photos.fit import write_demo
from kdpl.students import CoOp

pytestmark = pytest.mark.slow
PARTS = re.split(r"^## ", (ROOT / "docs/other_loops.md").read_text(encoding="utf-8"), flags=re.M)
BLOCKS = {part.split("\n")[0]: re.search(r"```python\n(.*?)```", part, re.S)[1] for part in PARTS}
SETUP = BLOCKS.pop("# In other loops")
NEEDS = {"Accelerate": "accelerate", "Lightning": "lightning", "Trainer of Hugging Face": "transformers"}
NEEDS |= {"Curves: TensorBoard and W&B": "wandb", "Images from Hugging Face datasets": "datasets"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """192 photos of the demo in subfolders by number, and the names."""
    folder = tmp_path_factory.mktemp("loops")
    photos, names = write_demo(folder / "demo")
    for i, photo in enumerate(sorted(photos.iterdir())[:192]):
        target = folder / "photos" / ("bread", "pizza")[i % 2]
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(photo, target)
    shutil.copy(names, folder / "names.txt")
    return folder


MEASURED = """
def loss_of():
    with torch.no_grad():
        batches = torch.utils.data.DataLoader(dataset, batch_size=64)
        return float(torch.stack([objective(images)[0] for images, _ in batches]).mean())

torch.manual_seed(1)
before, frozen = loss_of(), {k: v.clone() for k, v in clip.model.state_dict().items()}
"""
CHECKED = """
assert all(torch.equal(v, frozen[k]) for k, v in clip.model.state_dict().items())
print("losses", before, loss_of())
"""


def run(folder, code, *launcher):
    """Run a part in the folder of the photos; there, unlike here, `import datasets` finds the library of that name."""
    (folder / "loop.py").write_text(code)
    command = [sys.executable, *launcher, "loop.py"]
    process = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.mark.parametrize("title", [title for title in BLOCKS if "DDP" not in title])
def test_the_part_runs_as_printed_and_learns(title, folder):
    if title in NEEDS and NEEDS[title] not in {each.metadata["Name"].lower() for each in distributions()}:
        pytest.skip(f"{NEEDS[title]} is not installed")
    out = run(folder, SETUP + MEASURED + BLOCKS[title] + CHECKED)
    if "Confusion" in title:
        assert re.search(r"bread: [\d.]+ %", out)
        return
    before, after = map(float, re.search(r"losses (\S+) (\S+)", out).groups())
    assert after < before - 0.005


def test_plain_ddp_learns_on_two_processes(folder):
    block = next(block for title, block in BLOCKS.items() if "DDP" in title)
    run(folder, SETUP + block, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")
    (ctx,) = torch.load(folder / "learned.pt", weights_only=True).values()
    assert ctx.shape == (4, 128) and not torch.equal(
        ctx, CoOp(load_clip("emoji_student"), {"CTX_INIT": "a photo of a"}).learned.ctx
    )
