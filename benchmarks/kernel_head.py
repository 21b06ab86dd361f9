"""How long the head in closed form takes, and how much memory, for photos whose features are known.

    OMP_NUM_THREADS=2 python benchmarks/kernel_head.py            # 1,000, 5,000, 20,000 and 100,000 photos, a process each
    OMP_NUM_THREADS=2 python benchmarks/kernel_head.py --refit    # `kdpl refit` of 5,000 photos and 100 names

Features are drawn. Of the first they are 512 values for the student and for the teacher, as of ViT-B, around 100 names; timed
are the agreement with neighbours and the solve, gamma and ridge included, as `KernelHead` has them. The second is the whole
command with the embedded CLIPs, their loading included, in a process that has imported what it needs. Beside the seconds stand
those that all cores together spent, which other work on the machine changes less. Memory is the peak of the process.
"""

import argparse
import dataclasses
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import clip  # noqa: F401  its tokenizer, which a refit imports
import torch
import torch.nn.functional as F

from kdpl.datasets.emoji.scenes import class_names
from kdpl.photos.fit import refit_main
from kdpl.photos.pile import Words, begin_pile, read_pile
from kdpl.students.kernel_head import agree, solve

PHOTOS, NAMES, WIDTH = (1_000, 5_000, 20_000, 100_000), 100, 512
DRAW = torch.Generator().manual_seed(0)


def features(label: torch.Tensor, width: int) -> torch.Tensor:
    """Return unit features `(N, width)` around those of the labels."""
    noise = torch.randn(len(label), width, generator=DRAW)
    return F.normalize(torch.randn(NAMES, width, generator=DRAW)[label] + noise, dim=-1)


def clocks() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def passed(start: tuple[float, float]) -> str:
    wall, cpu = (now - then for now, then in zip(clocks(), start, strict=True))
    return f"{wall:.1f} s ({cpu:.1f} of all cores)"


def measure(photos: int) -> None:
    """Print a line for a number of photos."""
    label = torch.randint(NAMES, (photos,), generator=DRAW)
    student, teacher = features(label, WIDTH), features(label, WIDTH)
    log_p = (5 * F.one_hot(label, NAMES) + torch.randn(photos, NAMES, generator=DRAW)).log_softmax(-1)
    start = clocks()
    answers = agree(teacher, log_p)
    agreed, start = passed(start), clocks()
    solved = solve(student, answers)
    print(
        f"{photos:>7,} photos, {len(solved.centres):,} centres: neighbours {agreed}, solve {passed(start)}, {peak()}",
        flush=True,
    )


def peak() -> str:
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return f"peak {memory:.1f} GB, {torch.get_num_threads()} threads"


def measure_refit(photos: int) -> None:
    """Print a line for `kdpl refit` of so many photos."""
    with tempfile.TemporaryDirectory() as temporary:
        folder, names = Path(temporary, "fit"), Path(temporary, "names.txt")
        folder.mkdir()
        names.write_text("\n".join(class_names("all")[::5][:NAMES]))
        words = Words("emoji_student", "emoji_teacher", "a photo of a {}.")
        pile = begin_pile(read_pile(folder), words, folder)
        label = torch.randint(NAMES, (photos,), generator=DRAW)
        seen = {name: features(label, getattr(pile, name).shape[1]).half() for name in ("student", "teacher")}
        paths = [f"{i}.jpg" for i in range(photos)]
        dataclasses.replace(pile, paths=paths, contents=paths, stamps=[[0, 0]] * photos, **seen).write(folder)
        start = clocks()
        assert refit_main([str(folder), str(names), "-o", str(folder.parent / "refit"), "--quiet"]) == 0
        took = passed(start)
    print(f"{photos:,} photos, {NAMES} names: refit {took}, {peak()}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", type=int, default=PHOTOS)
    parser.add_argument("--refit", action="store_true", help="`kdpl refit` of 5,000 photos in place of the head alone")
    args = parser.parse_args()
    if args.refit:
        measure_refit(5_000)
    elif len(args.photos) == 1:
        measure(*args.photos)
    else:
        for photos in args.photos:  # a process each, for its own peak of memory
            subprocess.run([sys.executable, __file__, str(photos)], check=True)


if __name__ == "__main__":
    main()
