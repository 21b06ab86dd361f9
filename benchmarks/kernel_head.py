"""How long the head in closed form takes, and how much memory, for photos whose features are known.

    OMP_NUM_THREADS=2 python benchmarks/kernel_head.py                # 1,000, 5,000, 20,000 and 100,000 photos, a process each

Features are drawn: 512 values for the student and for the teacher, as of ViT-B, around 100 names. Timed are the agreement
with neighbours and the solve, gamma and ridge included, as `KernelHead` has them. Memory is the peak of the whole process.
"""

import argparse
import resource
import subprocess
import sys
import time

PHOTOS, NAMES, WIDTH = (1_000, 5_000, 20_000, 100_000), 100, 512


def measure(photos: int) -> None:
    """Print a line for a number of photos."""
    import torch
    import torch.nn.functional as F

    from kdpl.students.kernel_head import agree, solve

    draw = torch.Generator().manual_seed(0)
    label = torch.randint(NAMES, (photos,), generator=draw)
    student, teacher = (
        F.normalize(torch.randn(NAMES, WIDTH, generator=draw)[label] + torch.randn(photos, WIDTH, generator=draw), dim=-1)
        for _ in range(2)
    )
    log_p = (5 * F.one_hot(label, NAMES) + torch.randn(photos, NAMES, generator=draw)).log_softmax(-1)
    start = time.perf_counter()
    answers = agree(teacher, log_p)
    agreed = time.perf_counter()
    solved = solve(student, answers)
    end = time.perf_counter()
    right = float((solved.scores(student[:1000]).argmax(-1) == label[:1000]).float().mean())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"{photos:>7,} photos, {len(solved.centres):,} centres: neighbours {agreed - start:.1f} s, solve {end - agreed:.1f} s, "
        f"peak {peak:.1f} GB, {torch.get_num_threads()} threads ({right:.0%} of the first 1,000 as labelled)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photos", nargs="*", type=int, default=PHOTOS)
    given = parser.parse_args().photos
    for photos in given:
        if len(given) == 1:
            measure(photos)
        else:  # a process each, for its own peak of memory
            subprocess.run([sys.executable, __file__, str(photos)], check=True)


if __name__ == "__main__":
    main()
