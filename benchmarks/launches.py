"""Count what a warm training step launches on a card, by learner, on the simulated card of the tests.

A step of the real trainer with known views: text pass, prompted images, loss, backward pass and optimiser. "kernels" compute,
fill or copy; "others" are the other operations that PyTorch dispatches, views and allocations, which cost the host time too.
Nothing is timed. The towers are small: the counts depend on the number of layers, which are 12, as in every ViT-B, and not on
widths.
"""

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import simulated_card

if __name__ == "__main__":
    simulated_card.install()

import torch
from common import print_rows, publish_rows, random_clip
from open_clip import IMAGENET_CLASSNAMES
from train_step import build, step_forever

from kdpl.students import STEPPED
from kdpl.text.prompts import context_prompts

BATCH = 4


def count_text_pass(classes: int) -> simulated_card.Counts:
    """Return the counts of a text pass, forward and backward, of ImageNet's names behind 4 learned tokens."""
    clip = random_clip("small", 0, "cuda")
    layout = clip.layout(context_prompts(IMAGENET_CLASSNAMES[:classes], 4, "a photo of a"))
    ctx = torch.randn(4, clip.text.width, device="cuda").requires_grad_()
    for _ in range(2):
        ctx.grad = None
        with simulated_card.counted() as counts:
            features = clip.text(layout, ctx)
            features.backward(torch.ones_like(features))
    return counts


def count_step(learner: str, classes: int, precision: str) -> simulated_card.Counts:
    """Return the counts of the third step of `KDPL_<learner>`."""
    settings = argparse.Namespace(
        trainer=f"KDPL_{learner}", student="small", teacher="small", classes=classes, batch=BATCH, precision=precision,
        device="cuda", views=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        trainer = build(settings, "views warm", Path(folder), images=BATCH)
        steps = step_forever(trainer, preload=True)
        for _ in range(2):
            next(steps)
        with simulated_card.counted() as counts:
            next(steps)
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--precision", default="fp32", help="PREC of student and teacher: fp32, fp16, amp or bf16")
    parser.add_argument("--learner", choices=[l.__name__ for l in STEPPED], help="print this learner's operations by name")
    parser.add_argument("--publish", action="store_true", help="write the table into docs/performance.md")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.learner:
        counts = count_step(args.learner, args.classes, args.precision)
        print(f"{counts.kernels} kernels, {counts.others} others")
        print_rows([{"operation": name, "count": n} for name, n in counts.operations.most_common()], False)
        return
    counted = {f"text pass, {classes:,} names": count_text_pass(classes) for classes in (100, 1000)}
    counted |= {f"KDPL_{l.__name__}": count_step(l.__name__, args.classes, args.precision) for l in STEPPED}
    rows = [{"a step of": what, "kernels": counts.kernels, "others": counts.others} for what, counts in counted.items()]
    print_rows(rows, args.json)
    if args.publish:
        publish_rows("launches", rows)


if __name__ == "__main__":
    main()
