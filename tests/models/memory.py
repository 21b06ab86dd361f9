"""Measure the peak memory of loading a large CLIP in fp16 from a file of random fp16 weights, in its own process.

    python tests/models/memory.py [--model ViT-H-14-quickgelu:dfn5b] [--formats bin safetensors]

The file is written to a temporary folder and removed. The peak is the largest resident set while the CLIP is loaded, with and
without what Python and the libraries take before.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))


def write_weights(model: str, path: Path) -> None:
    """Write random weights of a model's shapes in fp16."""
    import torch
    from safetensors.torch import save_file

    from kdpl.clip.names import resolve
    from kdpl.clip.openclip import build, recipe_of

    shapes = {key: value.shape for key, value in build(model, recipe_of(model, resolve(model))).state_dict().items()}
    state = {key: torch.randn(shape).mul_(0.02).half() for key, shape in shapes.items()}
    save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)


def load(name: str) -> None:
    """Load a CLIP in fp16 and print megabytes: resident before, peak."""
    from kdpl.clip.loading import describe, load_clip

    describe(name)  # open_clip, timm and the tokenizer are loaded before the weights
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * os.sysconf("SC_PAGE_SIZE")
    start = time.perf_counter()
    clip = load_clip(name, "fp16")
    seconds = time.perf_counter() - start
    assert str(clip.dtype) == "torch.float16"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"{before / 1e6:.0f} {peak / 1e6:.0f} {seconds:.1f}")


def measure(model: str, suffix: str) -> tuple[float, float, float, float]:
    """Return megabytes of the file, resident before, and at the peak, and the seconds of loading."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, f"open_clip_weights.{suffix}")
        script = [sys.executable, __file__]
        subprocess.run([*script, "--write", model, str(path)], check=True)
        size = path.stat().st_size / 1e6
        printed = subprocess.run([*script, "--load", f"{model}:{path}"], check=True, capture_output=True, text=True).stdout
    return (size, *map(float, printed.split()[-3:]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-H-14-quickgelu:dfn5b")
    parser.add_argument("--formats", nargs="+", default=["bin", "safetensors"])
    parser.add_argument("--write", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.write:
        write_weights(args.write[0], Path(args.write[1]))
    elif args.load:
        load(args.load)
    else:
        for suffix in args.formats:
            size, before, peak, seconds = measure(args.model, suffix)
            print(
                f"{args.model} .{suffix}: file {size:,.0f} MB, peak {peak:,.0f} MB, {before:,.0f} MB of it before the weights; "
                f"{(peak - before) / size:.2f} times the file, {peak / size:.2f} with all of Python; loaded in {seconds:.0f} s"
            )


if __name__ == "__main__":
    main()
