"""A whole run on the embedded benchmark, from the start of the process to the final accuracy, with and without fixed views.

Every run is a process of `train.py`. Views are run twice with one folder for their features: cold, when it is empty, and warm,
when the first run has filled it, as for the next seed or variant. "ratio" is the time over that of the run without views.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, machine, print_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", default="KDPL_CoOp", help="a KDPL trainer")
    parser.add_argument("--dataset", default="emoji_meals", help="a data set of the embedded benchmark")
    parser.add_argument("--views", type=int, default=4, help="fixed views of an image")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--shots", type=int, default=16, help="training images of a class")
    parser.add_argument("--rounds", type=int, default=1, help="in which the kinds of run take turns; the median counts")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    args = parser.parse_args()
    print(f"{machine()}; {args.trainer} on {args.dataset}, {args.shots} shots, {args.epochs} epochs")
    kinds = ("fresh", f"{args.views} views, cold", f"{args.views} views, warm")
    runs: dict[str, list[dict]] = {kind: [] for kind in kinds}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for kind in kinds:
                runs[kind].append(run(args, kind, Path(folder)))
    baseline = statistics.median(r["seconds"] for r in runs[kinds[0]])
    rows = []
    for kind, results in runs.items():
        seconds = statistics.median(r["seconds"] for r in results)
        trained = statistics.median(r["train_seconds"] for r in results)
        rows.append({"augmentations": kind, "seconds": seconds, "ratio": seconds / baseline, "training_s": trained})
        rows[-1]["accuracy"] = results[0]["accuracy"]
    print_rows(rows, args.json)


def run(args: argparse.Namespace, kind: str, folder: Path) -> dict:
    """Train and test in its own process; return its wall-clock time, the training's and the accuracy."""
    output = folder / re.sub(r"\W+", "_", kind)
    options = ["OPTIM.MAX_EPOCH", args.epochs, "DATASET.NUM_SHOTS", args.shots]
    if kind != "fresh":
        options += ["TRAINER.KDPL.VIEWS", args.views, "TRAINER.KDPL.CACHE_DIR", folder / "views"]
    command = [
        sys.executable, ROOT / "train.py", "--trainer", args.trainer, "--seed", 1, "--output-dir", output,
        "--dataset-config-file", ROOT / "configs/datasets" / f"{args.dataset}.yaml",
        "--config-file", ROOT / "configs/trainers" / args.trainer / "emoji.yaml", *options,
    ]  # fmt: skip
    environment = {**os.environ, "KDPL_CACHE": str(folder / "cache")}  # text features are computed in each round
    started = time.perf_counter()
    subprocess.run([str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - started
    content = json.loads((output / "results.json").read_text())
    return {"seconds": seconds, "train_seconds": content["train_seconds"], "accuracy": content["results"][-1]["accuracy"]}


if __name__ == "__main__":
    main()
