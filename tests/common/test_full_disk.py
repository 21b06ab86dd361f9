"""A full disk, or a limit on the size of files: the previous version stays, and the message names the file and what to do."""

import json
import sys

import pytest
from support import ROOT, emoji_args, processes

from kdpl.bundle import read_bundle
from kdpl.common import exits
from kdpl.training.checkpoint import load_checkpoint
from kdpl.training.results import read_results

# One process: the limit on the size of files is moved between its runs.
STORY = """
import json, resource, sys
from kdpl import cache, train

folder = sys.argv[sys.argv.index("--output-dir") + 1]

def run(limit, *options, flags=(), main=train.main):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    print(json.dumps({"status": main([*flags, *sys.argv[1:], *options])}), file=sys.stderr, flush=True)

run(15_000, "OPTIM.MAX_EPOCH", "2")  # less than a checkpoint
run(resource.RLIM_INFINITY, "OPTIM.MAX_EPOCH", "2")
run(3_000, flags=("--eval-only", "--model-dir", folder))  # less than results.json, and than the log
views = ("TRAINER.KDPL.VIEWS", "1", "TRAINER.KDPL.CACHE_DIR", folder + "/views")
run(15_000, *views, main=cache.main)  # less than the features
run(resource.RLIM_INFINITY, *views, main=cache.main)
"""


@pytest.mark.slow
def test_a_run_that_cannot_write_fails_by_name_and_goes_on_once_there_is_room(tmp_path):
    options = ("DATASET.NUM_SHOTS", 1, "DATASET.SUBSAMPLE_CLASSES", "new", "TRAIN.CHECKPOINT_FREQ", 1)
    process = processes.run(
        [sys.executable, "-c", STORY, *emoji_args("KDPL_CoOp", tmp_path), *map(str, options), "DATALOADER.NUM_WORKERS", "0"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=400,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    assert "Traceback" not in process.stderr
    told = [line for line in process.stderr.splitlines() if line.startswith(("error: ", "{"))]
    statuses = [json.loads(line)["status"] for line in told if line.startswith("{")]
    assert statuses == [exits.FAILED, 0, exits.FAILED, exits.FAILED, 0]
    no_checkpoint, no_results, no_views = (line for line in told if line.startswith("error: "))
    folder = tmp_path / "prompt_learner"
    assert f"'{folder / 'model.pth.tar-1'}': File too large. What was there before is untouched. Make room" in no_checkpoint
    assert f"'{tmp_path / 'results.json'}': File too large. What was there before is untouched. Make room" in no_results
    assert f"could not be stored in {tmp_path / 'views'}" in no_views and "Make room, and start again" in no_views
    assert "views has all" in process.stdout
    assert f"{tmp_path / 'log.txt'}" in process.stdout and "ends here, because it cannot be written any more" in process.stdout
    assert load_checkpoint(folder / "model.pth.tar-2")["epoch"] == read_bundle(tmp_path).epoch == 2
    assert len(read_results(tmp_path)["results"]) == 1
    assert not list(tmp_path.rglob("*.kdpl-part"))
