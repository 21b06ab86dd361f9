"""How many images a second one run trains on with two ranks, beside one rank with one thread and with two.

The trainer is the real one with CLIPs of a real model's sizes and random weights (benchmarks/train_step.py), started by
torchrun on the CPU; the batch is the same whatever the ranks. "ratio" is the rate over that of one rank with one thread: with
two cores, two ranks of one thread each have as much of the machine as one rank with two.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import machine, print_rows
from train_step import build, step_forever

from kdpl.common import distributed

SETUPS = {"1 rank, 1 thread": (1, 1), "1 rank, 2 threads": (1, 2), "2 ranks, 1 thread each": (2, 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", default="KDPL_CoOp", help="a KDPL trainer")
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--batch", type=int, default=32, help="images in a batch of all ranks together")
    parser.add_argument("--student", default="ViT-B/32", help="the OpenAI ViT whose sizes the student has")
    parser.add_argument("--teacher", default="ViT-B/16", help="the OpenAI ViT whose sizes the teacher has")
    parser.add_argument("--shard-classes", action="store_true", help="share the class names among the ranks, too")
    parser.add_argument("--steps", type=int, default=3, help="of which the median counts, after one that does not")
    parser.add_argument("--rounds", type=int, default=1, help="in which the setups take turns; the median counts")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", help="file for the seconds of a step: this process is a rank")
    args = parser.parse_args()
    if args.measure:
        measure(args)
        return
    print(f"{machine()}; {args.trainer}, {args.classes} classes, batch {args.batch}")
    seconds: dict[str, list[float]] = {setup: [] for setup in SETUPS}
    for _ in range(args.rounds):
        for setup, (ranks, threads) in SETUPS.items():
            seconds[setup].append(run(args, ranks, threads))
    medians = {setup: statistics.median(own) for setup, own in seconds.items()}
    first = next(iter(medians.values()))
    rows = [{"ranks": setup, "step_s": s, "images_per_s": args.batch / s, "ratio": first / s} for setup, s in medians.items()]
    print_rows(rows, args.json)


def run(args: argparse.Namespace, ranks: int, threads: int) -> float:
    """Return the seconds of a step of this many ranks."""
    own = [x for k, v in vars(args).items() if k not in ("json", "measure", "shard_classes", "rounds") for x in (f"--{k}", v)]
    own += ["--shard-classes"] if args.shard_classes else []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "seconds.json")
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
        command = [sys.executable, *launcher, __file__, *own, "--measure", file]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run([str(part) for part in command], env=environment, stdout=subprocess.DEVNULL, check=True)
        return json.loads(file.read_text())


def measure(args: argparse.Namespace) -> None:
    flags = argparse.Namespace(**vars(args), views=0, device="cpu", precision="fp32")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    with tempfile.TemporaryDirectory() as folder:
        distributed.start(False)
        trainer = build(flags, "views 0", Path(folder), images=2 * args.batch)
        if args.shard_classes:
            trainer.cfg.defrost()
            trainer.cfg.TRAINER.KDPL.SHARD_CLASSES = True
            trainer.use_class_names()
        steps = step_forever(trainer)
        durations = []
        for _ in range(1 + args.steps):
            distributed.barrier()
            started = time.perf_counter()
            next(steps)
            distributed.barrier()
            durations.append(time.perf_counter() - started)
    if distributed.is_main():
        Path(args.measure).write_text(json.dumps(statistics.median(durations[1:])))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
