"""The text pass against the full-length one: ImageNet's class names behind 4 learned tokens, forward and backward.

The text tower has a real model's size and random weights. The full-length pass is what published implementations run: 77
tokens for every name, through the model's own blocks. Times of the two are taken in turns in one process; peak memory is that
of a process which runs one of them alone.
"""

import argparse
import time

import common
import torch
from common import in_own_process, machine, now, peak_memory, print_rows, random_clip, seconds_per_call
from open_clip import IMAGENET_CLASSNAMES
from published import full_length_text
from torch import Tensor, nn

from kdpl.clip.prompt_layout import PromptLayout
from kdpl.text.prompts import context_prompts

WIDTHS = {"vit_b32": "ViT-B/32", "vit_b16": "ViT-B/16", "vit_l14": "ViT-L/14"}
N_CTX = 4


def peak_flops() -> float:
    """Return the machine's best rate on a large fp32 matrix product, in FLOP/s."""
    a, b = torch.randn(2048, 2048), torch.randn(2048, 2048)
    best = float("inf")
    for _ in range(8):
        start = now("cpu")
        a @ b
        best = min(best, now("cpu") - start)
    return 2 * 2048**3 / best


def matrix_flops(layout: PromptLayout, width: int, depth: int) -> float:
    """Floating-point operations of the projections and MLPs, forward and backward (gradients of inputs alone)."""
    rows, names = layout.size, len(layout)
    inner = (depth - 1) * rows * 24 * width**2
    last = rows * 4 * width**2 + names * (2 + 2 + 16) * width**2  # keys and values of all rows, the rest of EOT rows
    return 2 * (inner + last)


def prepare(args: argparse.Namespace, classes: int):
    clip = random_clip(WIDTHS[args.width], seed=0)
    prompts = context_prompts(IMAGENET_CLASSNAMES[:classes], N_CTX, "a photo of a")
    ctx = nn.Parameter(torch.randn(N_CTX, clip.text.width) * 0.02)
    layout = PromptLayout(clip.text, prompts)

    def step(kind: str) -> tuple[Tensor, Tensor]:
        ctx.grad = None
        features = clip.text(layout, ctx) if kind == "ours" else full_length_text(clip, prompts, ctx)
        features.pow(3).sum().backward()
        return features.detach(), ctx.grad.clone()

    return clip, prompts, layout, step


def measure_time(args: argparse.Namespace, classes: int) -> dict:
    clip, prompts, layout, step = prepare(args, classes)
    row = {"classes": classes, "tokens": layout.size, "full_tokens": 77 * len(prompts)}
    compare = classes <= args.full_up_to
    calls = [lambda: step("ours"), *([lambda: step("full")] if compare else [])]
    seconds = seconds_per_call(args.steps, *calls)
    row["ours_s"] = seconds[0]
    if compare:
        (f, g), (f_full, g_full) = step("ours"), step("full")
        row |= {"full_s": seconds[1], "speedup": seconds[1] / seconds[0]}
        row["max_error"] = max((f - f_full).abs().max().item(), ((g - g_full).abs().max() / g_full.abs().max()).item())
    row["share_of_peak"] = matrix_flops(layout, clip.text.width, clip.text.depth) / seconds[0] / peak_flops()
    return row


def measure_memory(args: argparse.Namespace, classes: int, kind: str) -> dict:
    *_, step = prepare(args, classes)
    step(kind)
    return {f"{kind}_gb": peak_memory()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--width", choices=WIDTHS, default="vit_b32", help="the model whose text tower's size is taken")
    parser.add_argument("--steps", type=int, default=3, help="of which the median counts")
    parser.add_argument("--full-up-to", type=int, default=100, help="more names are not run at full length")
    parser.add_argument("--cpu-time", action="store_true", help="count the seconds of the processor, on a busy machine")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    parser.add_argument("--measure", choices=["time", "ours", "full"], help="one thing alone, in this process")
    args = parser.parse_args()
    if args.cpu_time:
        common.clock = time.process_time
    if args.measure:
        (classes,) = args.classes
        row = measure_time(args, classes) if args.measure == "time" else measure_memory(args, classes, args.measure)
        print_rows([row], True)
        return
    print(f"{machine()}; text tower of {WIDTHS[args.width]}'s size, {N_CTX} learned tokens, forward and backward in fp32")
    rows = []
    for classes in args.classes:
        own = ["--width", args.width, "--steps", args.steps, "--full-up-to", args.full_up_to, "--classes", classes]
        own += ["--cpu-time"] * args.cpu_time
        row = in_own_process(__file__, *own, "--measure", "time")["rows"][0]
        for kind in ("ours", "full") if classes <= args.full_up_to else ("ours",):
            row |= in_own_process(__file__, *own, "--measure", kind)["rows"][0]
        rows.append(row)
    print_rows(rows, args.json)


if __name__ == "__main__":
    main()
