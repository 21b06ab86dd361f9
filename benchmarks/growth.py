"""How the cost of a KDPL training grows with class names, images and views: one of them at a time.

The trainer is the real one, with models of real size and random weights. "first pass s" is the time of the first epochs over
all views, in which every feature is computed, "warm epoch s" that of an epoch when all are known. "cost" is the time of both
over that of the first row of the same kind, and "linear" is what it would be if it grew in proportion.
"""

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from common import in_own_process, machine, print_rows
from train_step import build, step_forever

GROWING = {"classes": (100, 300, 1000), "images": (32, 64, 128), "views": (1, 2, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", default="KDPL_CoOp", help="a KDPL trainer")
    parser.add_argument("--student", default="ViT-B/32", help="the OpenAI ViT whose sizes the student has")
    parser.add_argument("--teacher", default="ViT-B/16", help="the OpenAI ViT whose sizes the teacher has")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--classes", type=int, default=100, help="where it is not what grows")
    parser.add_argument("--images", type=int, default=32, help="where it is not what grows")
    parser.add_argument("--views", type=int, default=1, help="where it is not what grows")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", action="store_true", help="one setting alone, in this process")
    args = parser.parse_args()
    args.device, args.precision = "cpu", "fp32"
    if args.measure:
        print_rows([measure(args)], True)
        return
    print(f"{machine()}; {args.trainer}, batch {args.batch}, {args.student}-sized student, {args.teacher}-sized teacher, fp32")
    print_rows([row for growing in GROWING for row in rows(args, growing)], args.json)


def rows(args: argparse.Namespace, growing: str) -> Iterator[dict]:
    """Give a row for each value of what grows."""
    flags = ("trainer", "student", "teacher", "batch", "classes", "images", "views")
    first = None
    for value in GROWING[growing]:
        setting = {**{flag: getattr(args, flag) for flag in flags}, growing: value}
        own = [part for flag, setting_value in setting.items() for part in (f"--{flag}", setting_value)]
        row = in_own_process(__file__, *own, "--measure")["rows"][0]
        total = row["first_pass_s"] + row["warm_epoch_s"]
        first = first or (value, total)
        yield {
            "grows": growing,
            **{key: setting[key] for key in GROWING},
            **row,
            "cost": total / first[1],
            "linear": value / first[0],
        }


def measure(args: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of the first pass over all views, and of an epoch after it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(args, "views warm", Path(folder), args.images)
        steps, epoch = step_forever(trainer), args.images // args.batch
        start = time.perf_counter()
        for _ in range(epoch * args.views):
            next(steps)
        passed = time.perf_counter()
        for _ in range(epoch):
            next(steps)
        return {"first_pass_s": passed - start, "warm_epoch_s": time.perf_counter() - passed}


if __name__ == "__main__":
    main()
