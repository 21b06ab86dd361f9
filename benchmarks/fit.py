"""CPU seconds a photo of the towers that may teach in `kdpl fit`, in fp32 and bf16, with random weights.

python benchmarks/fit.py
"""

import argparse
import sys
import time

import torch
from common import in_own_process, machine, print_rows, random_clip

TOWERS = ("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-H/14")


def tower(name: str, precision: str, photos: int = 4) -> dict[str, object]:
    """Return the CPU seconds that an image tower needs for a photo, and the minutes of a thousand on two cores."""
    clip = random_clip(name, 0, "cpu", "fp32", precision)
    images = torch.randn(photos, 3, clip.resolution, clip.resolution)
    with torch.inference_mode(), clip.autocast(frozen=True):
        clip.image_features(images)
        start = time.process_time()
        clip.image_features(images)
        seconds = (time.process_time() - start) / photos
    return {"tower": name, "precision": precision, "cpu_s": seconds, "minutes for 1,000 on two cores": seconds * 1000 / 60 / 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tower", nargs=2, metavar=("NAME", "PRECISION"), help="one of them, in this process")
    args = parser.parse_args()
    if args.tower:
        print_rows([tower(*args.tower)], True)
        return
    print(machine())
    pairs = [(name, dtype) for name in TOWERS for dtype in ("fp32", "bf16")]
    print_rows([in_own_process(sys.argv[0], "--tower", *pair)["rows"][0] for pair in pairs], False)


if __name__ == "__main__":
    main()
