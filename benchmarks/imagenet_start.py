"""Measure what the start of a run on ImageNet costs: processor time and peak memory of the data set, without Python's imports.

    python benchmarks/imagenet_start.py [--folder FOLDER] [--images 1281167]

Writes a folder of empty files as ImageNet has it (1,000 classes, 50,000 images to test on), and starts each kind of run twice,
each in its own process. The folder is temporary unless it is given.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CLASSES, TEST_IMAGES = 1000, 50_000
RUNS = {
    "16 shots": ("DATASET.NUM_SHOTS", "16"),
    "16 shots, SHOTS random": ("DATASET.NUM_SHOTS", "16", "TRAINER.KDPL.SHOTS", "random"),
    "16 shots, SEED -1": ("DATASET.NUM_SHOTS", "16", "SEED", "-1"),
    "all images": ("DATASET.NUM_SHOTS", "-1"),
}


def write(root: Path, images: int) -> None:
    """Write the files as links to one empty file for each folder."""
    top = root / "imagenet"
    names = [f"n{label:08}" for label in range(CLASSES)]
    for part, count in (("train", images), ("val", TEST_IMAGES)):
        for label, name in enumerate(names):
            folder = top / "images" / part / name
            folder.mkdir(parents=True)
            first = folder / f"{name}_0.JPEG"
            first.touch()
            for i in range(1, count // CLASSES + (label < count % CLASSES)):
                os.link(first, folder / f"{name}_{i}.JPEG")
    (top / "classnames.txt").write_text("".join(f"{name} thing {name}\n" for name in names))


def start(root: str, options: list[str]) -> None:
    """Build the data set and print seconds of processor time, and megabytes at the peak."""
    sys.path.insert(0, str(ROOT))
    import kdpl.datasets
    import kdpl.trainers  # noqa: F401
    from kdpl import train
    from kdpl.datasets.coop.benchmarks import DATASETS

    args = train.parse_args(["--trainer", "KDPL_CoOp", "--seed", "1", "--root", root, "--output-dir", root, *options])
    cfg = train.build_cfg(args, f"{ROOT}/configs/datasets/imagenet.yaml")
    before = time.process_time()
    dataset = DATASETS["ImageNet"](cfg)
    seconds, peak = time.process_time() - before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{len(dataset.train_x)} {len(dataset.test)} {seconds:.1f} {peak / 1e6:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", help="where the files are, or are written (default: a temporary folder)")
    parser.add_argument("--images", type=int, default=1_281_167, help="to train on")
    parser.add_argument("--start", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        start(args.start[0], args.start[1:])
        return
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(args.folder or temporary)
        if not (root / "imagenet").exists():
            write(root, args.images)
        print("| run | start | training images | processor, s | peak, MB |\n| --- | --- | --- | --- | --- |")
        for run, options in RUNS.items():
            for attempt in ("first", "second"):
                command = [sys.executable, __file__, "--start", str(root), *options]
                printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
                train_images, _, seconds, peak = printed[-4:]
                print(f"| {run} | {attempt} | {int(train_images):,} | {seconds} | {int(peak):,} |", flush=True)


if __name__ == "__main__":
    main()
