"""A GPU's training steps beside the published way of taking them, and beside the bound that the card itself sets.

First the card's rates are measured: large matrix products in fp32 and in half precision, and a copy of memory. Then, for each
case, the published step, ours with fresh augmentations and ours with warm views, each in its own process
(benchmarks/train_step.py). Batches are loaded before, so that images decode in no step. "bound s" is what the step's matrix
products need at the measured rate, and its other operations at the measured bandwidth; "times bound" how much longer it took.

Tried on a CPU with --device cpu --small, which says nothing about any card.
"""

import argparse
import json

import torch
from common import device_seconds, in_own_process, machine, print_rows
from train_step import compare

CASES = {  # trainer and images in a batch
    "CoOp 32": ("KDPL_CoOp", 32),
    "CoCoOp 1": ("KDPL_CoCoOp", 1),
    "CoCoOp 8": ("KDPL_CoCoOp", 8),
    "MaPLe 4": ("KDPL_MaPLe", 4),
    "PromptSRC 4": ("KDPL_PromptSRC", 4),
}
HALF = {"fp16": "float16", "amp": "float16", "bf16": "bfloat16"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES, metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--device", default="cuda", choices=["cpu", "cuda"])
    parser.add_argument("--precision", default="fp16", help="PREC of student and teacher: fp32, fp16, amp or bf16")
    parser.add_argument("--steps", type=int, default=10, help="in a row, of which the mean counts, the median of three times")
    parser.add_argument("--small", action="store_true", help="few classes and small CLIPs: a trial of this script itself")
    parser.add_argument("--no-reference", action="store_true", help="leave out the published step")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", action="store_true", help="the rates alone, in this process")
    args = parser.parse_args()
    dtypes = ["float32", *([HALF[args.precision]] if args.precision in HALF else [])]
    if args.measure:
        print(json.dumps(measured_rates(args.device, dtypes, args.small)))
        return
    own = ["--device", args.device, "--precision", args.precision, "--measure", *(["--small"] * args.small)]
    rates = in_own_process(__file__, *own)
    words = ", ".join(f"{rate / 1e12:.3g} TFLOP/s in {dtype}" for dtype, rate in rates.items() if dtype != "bandwidth")
    print(f"{machine(args.device)}; measured: {words}, {rates['bandwidth'] / 1e9:.3g} GB/s; {args.precision}")
    rows = [{"case": case, **row} for case in args.cases for row in compare(step_arguments(args, case, rates))]
    print_rows(rows, False)
    if args.json:
        print(json.dumps({"machine": machine(args.device), "precision": args.precision, "rates": rates, "rows": rows}))


def step_arguments(args: argparse.Namespace, case: str, rates: dict[str, float]) -> argparse.Namespace:
    """Return the arguments of benchmarks/train_step.py for a case."""
    trainer, batch = CASES[case]
    sizes = ("small", "small", 12) if args.small else ("ViT-B/32", "ViT-H/14", 1000)
    return argparse.Namespace(
        trainer=trainer, classes=sizes[2], batch=min(batch, 4) if args.small else batch, student=sizes[0], teacher=sizes[1],
        views=2, reference=not args.no_reference, steps=args.steps, device=args.device, precision=args.precision, preload=True,
        rates=rates, json=False, measure=None, cpu_time=False,
    )  # fmt: skip


def measured_rates(device: str, dtypes: list[str], small: bool) -> dict[str, float]:
    """Return the FLOP/s of a large matrix product by dtype, and the bandwidth in B/s of a copy, read and written."""
    n, size, times = (512, 2**22, 2) if small else (8192, 2**28, 20)
    rates = {}
    for dtype in dtypes:
        a, b = (torch.randn(n, n, device=device).to(getattr(torch, dtype)) for _ in range(2))
        out = torch.empty_like(a)
        torch.mm(a, b, out=out)
        rates[dtype] = 2 * n**3 / device_seconds(lambda a=a, b=b, out=out: torch.mm(a, b, out=out), times, device)
    source = torch.zeros(size, device=device)
    target = torch.empty_like(source)
    target.copy_(source)
    rates["bandwidth"] = 2 * source.nbytes / device_seconds(lambda: target.copy_(source), times, device)
    return rates


if __name__ == "__main__":
    main()
