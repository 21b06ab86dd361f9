"""Kill a training at random moments, start it again with the same command, and compare its end with that of an unbroken run.

    python tests/faults/kill.py --kills 50

Every round is a short training on the embedded benchmark in real processes: SIGKILL to the whole process group after a random
time, again and again until a start survives to its end. One kill in five falls anywhere, the others from the first step of
training on, which is short beside the start of a process. Rounds take turns with different trainers, with fresh
augmentations and with views kept on disk, with and without loader workers. What is compared, to the last bit: prompts,
optimizer and schedule, results, the course of losses and learning rates, and the features of the views. The exit status is 0 if
nothing differs.
"""

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from support import ROOT, emoji_args

from kdpl.training.checkpoint import load_checkpoint
from kdpl.training.results import read_results

EPOCHS = 4
COMMON = (
    *("OPTIM.MAX_EPOCH", EPOCHS, "DATASET.NUM_SHOTS", 2, "DATASET.SUBSAMPLE_CLASSES", "base", "TRAIN.PRINT_FREQ", 1),
    *("DATALOADER.TRAIN_X.BATCH_SIZE", 8, "TRAIN.CHECKPOINT_FREQ", 1, "TRAIN.CHECKPOINT_EVERY_MINUTES", 1e-9),
)
KINDS = {
    "KDPL_CoOp": ("DATALOADER.NUM_WORKERS", 0),
    "KDPL_PromptSRC": ("DATALOADER.NUM_WORKERS", 0),
    "KDPL_CoOp, views": ("DATALOADER.NUM_WORKERS", 0, "TRAINER.KDPL.VIEWS", 2),
    "KDPL_CoOp, 2 workers": ("DATALOADER.NUM_WORKERS", 2),
}


def command(kind: str, output: Path) -> list[str]:
    trainer = kind.partition(",")[0]
    kept = ("TRAINER.KDPL.CACHE_DIR", output / "views") if "views" in kind else ()
    options = (*COMMON, *KINDS[kind], *kept)
    return [sys.executable, str(ROOT / "train.py"), *emoji_args(trainer, output), *map(str, options)]


def start(kind: str, output: Path) -> subprocess.Popen:
    log = open(output.parent / f"{output.name}.txt", "a", encoding="utf-8")  # noqa: SIM115  it belongs to the process
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}
    process = subprocess.Popen(command(kind, output), stdout=log, stderr=log, env=environment, start_new_session=True)
    process.log_size = log.tell()  # where its own part of the log begins
    log.close()
    return process


def wait_for_training(process: subprocess.Popen, output: Path) -> None:
    """Wait until a start has taken a step, or has ended."""
    log = output.parent / f"{output.name}.txt"
    earlier = process.log_size
    while process.poll() is None and b"\nepoch [" not in log.read_bytes()[earlier:]:
        time.sleep(0.01)


def end_state(output: Path) -> dict[str, object]:
    """Return all that must not differ."""
    (path,) = output.rglob(f"model.pth.tar-{EPOCHS}")
    state = load_checkpoint(path)
    state["kdpl"].pop("train_seconds")
    results = [{k: v for k, v in entry.items() if k != "time"} for entry in read_results(output)["results"]]
    views = {}
    for file in sorted((output / "views").rglob("*.safetensors")):
        content = load_file(file)
        views |= {bytes(key): value for key, value in zip(content["keys"].tolist(), content["values"], strict=True)}
    return {"state": state, "results": results, "history": (output / "history.csv").read_bytes(), "views": views}


def differences(a: object, b: object, where: str = "") -> list[str]:
    """Return where two nested states differ."""
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [d for key in a for d in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [d for i, pair in enumerate(zip(a, b, strict=True)) for d in differences(*pair, f"{where}/{i}")]
    return [] if type(a) is type(b) and a == b else [where]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="how many in all")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    generator, kills, problems = random.Random(args.seed), 0, []
    with tempfile.TemporaryDirectory() as folder:
        unbroken, seconds = {}, {}
        for kind in KINDS:
            output, began = Path(folder, f"unbroken {kind}"), time.monotonic()
            process = start(kind, output)
            wait_for_training(process, output)
            training = time.monotonic()
            if process.wait() != 0:
                print((output.parent / f"{output.name}.txt").read_text()[-3000:])
                return 1
            unbroken[kind], seconds[kind] = end_state(output), (time.monotonic() - began, time.monotonic() - training)
            print(f"{kind}: {seconds[kind][0]:.0f} s unbroken, {seconds[kind][1]:.1f} s of it training", flush=True)
        for number, kind in enumerate(itertools.cycle(KINDS)):
            if kills >= args.kills:
                break
            output = Path(folder, f"round {number}")
            for kills_here in itertools.count():
                process = start(kind, output)
                limit = generator.uniform(0, 1.1 * seconds[kind][0])
                if generator.random() < 0.8:
                    wait_for_training(process, output)
                    limit = generator.uniform(0, 0.4 * seconds[kind][1])
                try:
                    status = process.wait(600 if kills >= args.kills or kills_here == 8 else limit)
                    break
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    kills += 1
            found = [f"exit status {status}"] if status else differences(end_state(output), unbroken[kind])
            problems += [f"round {number} ({kind}): {what}" for what in found]
            print(f"round {number} ({kind}): {kills_here} kills, {'; '.join(found) or 'the same'}; {kills} in all", flush=True)
            if status:
                print((output.parent / f"{output.name}.txt").read_text()[-3000:])
    print(f"{kills} kills, {len(problems)} differences", *problems, sep="\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
