"""What `kdpl fit` takes beside its pass over the photos, with CLIPs of real sizes and random weights.

    python benchmarks/fit.py                  # the whole of a fit, in units of the towers' pass: at most 1.3
    python benchmarks/fit.py --towers         # seconds a photo of the towers that may teach, in fp32 and bf16

The photos are JPEGs of 640 x 480 pixels. "pass" is the time that both towers need for all photos, their decoding included;
"fit" is the whole command, with the loading of the models. Both are given in wall time, and
in CPU seconds, which neighbours on the machine hardly change.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from common import in_own_process, machine, print_rows, random_clip
from photos import write_photos

STUDENT, TEACHERS = "ViT-B/32", ("ViT-B/16", "ViT-L/14", "ViT-H/14")
LIMIT = 1.3


def write_clip(path: Path, name: str) -> str:
    """Write a CLIP of these sizes with random weights, and return what it is called."""
    from safetensors.torch import save_file

    save_file({k: v.contiguous() for k, v in random_clip(name, 0).model.state_dict().items()}, path)
    return f"openai:{path}"


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


class Clocks:
    """Wall and CPU seconds spent in a call, summed."""

    def __init__(self):
        self.wall = self.cpu = 0.0

    def around(self, call):
        def timed(*args, **kwargs):
            wall, cpu = time.perf_counter(), time.process_time()
            try:
                return call(*args, **kwargs)
            finally:
                self.wall += time.perf_counter() - wall
                self.cpu += time.process_time() - cpu

        return timed


def fit(photos: int, names: int, teacher: str) -> list[dict[str, object]]:
    """Run a fit in this process, and return its times."""
    from open_clip import IMAGENET_CLASSNAMES

    from kdpl.photos import fitting
    from kdpl.photos.fit import main

    passing, whole = Clocks(), Clocks()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        os.environ["KDPL_CACHE"] = str(folder / "cache")
        write_photos(folder / "photos", photos, (640, 480))
        (folder / "names.txt").write_text("\n".join(sorted(IMAGENET_CLASSNAMES[:names])) + "\n", encoding="utf-8")
        models = [write_clip(folder / f"{n}.safetensors", name) for n, name in (("student", STUDENT), ("teacher", teacher))]
        fitting.look, fitting.fit = passing.around(fitting.look), whole.around(fitting.fit)
        flags = ["-o", str(folder / "out"), "--student", models[0], "--teacher", models[1]]
        if main([str(folder / "photos"), str(folder / "names.txt"), *flags]):
            raise SystemExit("The fit failed, see above.")
    return [
        {"time": kind, "pass_s": a, "fit_s": b, "fit / pass": b / a}
        for kind, a, b in (("wall", passing.wall, whole.wall), ("CPU", passing.cpu, whole.cpu))
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photos", type=int, default=300)
    parser.add_argument("--names", type=int, default=20, help="class names")
    parser.add_argument("--teacher", default="ViT-L/14", choices=TEACHERS)
    parser.add_argument("--towers", action="store_true", help="the towers alone")
    parser.add_argument("--tower", nargs=2, metavar=("NAME", "PRECISION"), help="one of them, in this process")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    args = parser.parse_args()
    if args.tower:
        print_rows([tower(*args.tower)], True)
        return 0
    print(machine())
    if args.towers:
        pairs = [(name, dtype) for name in (STUDENT, *TEACHERS) for dtype in ("fp32", "bf16")]
        print_rows([in_own_process(sys.argv[0], "--tower", *pair)["rows"][0] for pair in pairs], args.json)
        return 0
    rows = fit(args.photos, args.names, args.teacher)
    print_rows(rows, args.json)
    return int(rows[1]["fit / pass"] > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
