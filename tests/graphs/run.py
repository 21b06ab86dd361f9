"""Hold the compiled step of every learner to the eager one, in every way that a step has, and print what was held.

    python tests/graphs/run.py [--learners CoOp ...] [--ways inductor ...]

A step, forward and backward, is one graph of torch.compile for each size of a batch; its losses are those of the eager step to
1e-6. Ways: from images, with the attention that a card has, from known features, from labels (the baselines),
with a ResNet as teacher, with class-specific prompts, and compiled by inductor, which needs a C++ compiler, to 1e-5; all others
by aot_eager. The exit status is the number of what failed.
"""

import argparse
import itertools
import sys
import tempfile
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import kdpl  # noqa: F401  first: it makes `dassl` importable

from support.graphs import LEARNERS, WAYS, hold_to_eager, small_clips  # isort: skip

ONCE = {"a ResNet as teacher": ("CoOp",), "class-specific": ("CoOp",)}  # ways whose code is the same for all learners


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--learners", nargs="+", choices=LEARNERS, default=LEARNERS)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        clips = small_clips(Path(folder))
        for way, learner in itertools.product(args.ways, args.learners):
            if learner not in ONCE.get(way, LEARNERS):
                continue
            start, said = time.process_time(), "ok"
            try:
                hold_to_eager(learner, way, clips)
            except Exception as error:  # of any kind: it is printed, and the others run
                failed, said = failed + 1, "".join(traceback.format_exception(error)[-6:])
            print(f"{learner:10} {way:20} {time.process_time() - start:6.1f} s  {said}", flush=True)
    print(f"{failed} failed" if failed else "All steps are one graph with the losses of eager ones.")
    return failed


if __name__ == "__main__":
    sys.exit(main())
