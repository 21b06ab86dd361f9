"""Estimate what bounds the text pass on a card: what the host takes to launch it, or its matrix products.

Nothing is timed and no card is needed. Launches are counted on the simulated card of the tests, with a small tower of as many
layers; FLOP on tensors without values, with the text tower of a real model. "launches ms" is kernels times the seconds of the
host for one, and a card's column the FLOP at the peak of its data sheet in half precision, both of
kdpl/estimate.py. A pass takes at least the larger of the two, and "gains" are the published pass's over ours.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import simulated_card

if __name__ == "__main__":
    simulated_card.install()

import torch
from common import print_rows, publish_rows, random_clip
from open_clip import IMAGENET_CLASSNAMES
from published import full_length_text
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from kdpl.clip.loading import outline_clip
from kdpl.clip.model import Clip
from kdpl.estimate import GPUS, LAUNCH
from kdpl.experiments.cost import Tally
from kdpl.text.prompts import context_prompts

CARDS = ("t4", "a100", "h100")
N_CTX, LIKE_ALL = 4, 10  # context tokens; names with which the published pass is counted, whose launches are the same for all


def text_pass(way: str, clip: Clip, classes: int) -> Callable[[], Tensor]:
    """Return a text pass, forward and backward, of ImageNet's names behind learned tokens: "ours" or the "published" one."""
    prompts = context_prompts(IMAGENET_CLASSNAMES[:classes], N_CTX, "a photo of a")
    ctx = torch.randn(N_CTX, clip.text.width, device=clip.device, dtype=clip.text.dtype).requires_grad_()
    layout = clip.layout(prompts) if way == "ours" else None

    def call() -> Tensor:
        features = clip.text(layout, ctx) if layout is not None else full_length_text(clip, prompts, ctx)
        features.backward(torch.ones_like(features))
        return features

    return call


def launches(way: str, classes: int) -> simulated_card.Counts:
    """Return the counts of a second pass; the first one fills caches."""
    call = text_pass(way, random_clip("small", 0, "cuda"), LIKE_ALL if way == "published" else classes)
    for _ in range(2):
        with simulated_card.counted() as counts:
            call()
    return counts


def flops(way: str, classes: int, student: str) -> int:
    """Return the FLOP of the matrix products, on tensors without values."""
    clip = outline_clip(student)
    with FakeTensorMode(allow_non_fake_inputs=True):
        clip.model.to_empty(device="cpu")  # without values, which is computed as on a card
        call = text_pass(way, clip, classes)
        with Tally() as tally:
            call()
    return tally.flops()


def bounds(way: str, classes: int, student: str) -> dict[str, object]:
    counts, total = launches(way, classes), flops(way, classes, student)
    row = {"text pass": way, "names": classes, "kernels": counts.kernels, "others": counts.others, "GFLOP": total / 1e9}
    row["launches ms"] = 1e3 * LAUNCH * counts.kernels
    return row | {f"{card} ms": 1e3 * total / (1e12 * GPUS[card][0]) for card in CARDS}


def gains(rows: list[dict]) -> list[dict[str, object]]:
    """Return by how much a pass is faster than the published one, for rows of the two in turn."""
    found = []
    for published, ours in zip(rows[::2], rows[1::2], strict=True):
        seconds = {card: [max(row["launches ms"], row[f"{card} ms"]) for row in (published, ours)] for card in CARDS}
        found.append({"names": ours["names"]} | {f"gain on {card}": theirs / own for card, (theirs, own) in seconds.items()})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--student", default="ViT-B/32", help="whose text tower's size is taken")
    parser.add_argument("--publish", action="store_true", help="write the tables into docs/performance.md")
    parser.add_argument("--json", action="store_true", help="print the rows as one JSON object on the last line too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [bounds(way, n, args.student) for n in args.classes for way in ("published", "ours")]
    print_rows(gains(rows), False)
    print_rows(rows, args.json)
    if args.publish:
        publish_rows("bounds", rows, ",.1f")
        publish_rows("gains", gains(rows), ".1f")


if __name__ == "__main__":
    main()
