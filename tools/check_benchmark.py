"""Print the zero-shot accuracy of the embedded CLIPs on the benchmark's test scenes, base / new classes.

    python tools/check_benchmark.py

The scenes are drawn in memory: no cache folder is written or read. Candidates are the classes of the half alone, as in
base-to-new evaluation, so the two figures of a cell have half as many classes each.
"""

import argparse
import math

import numpy as np
import torch
from tabulate import tabulate
from torch.nn import functional as F

from kdpl.clip.loading import load_clip
from kdpl.clip.model import Clip
from kdpl.datasets.emoji.plans import PLANS, TARGETS, class_names, draw, scenes_of


@torch.no_grad()
def accuracy(clip: Clip, template: str, names: list[str], images: np.ndarray, labels: np.ndarray) -> float:
    """Zero-shot top-1 in percent of images (n, 64, 64, 3) uint8 among `names`."""
    mean, std = (torch.tensor(channels)[:, None, None] for channels in (clip.mean, clip.std))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    texts = clip.model.encode_text(clip.tokenize([template.format(name) for name in names]))
    guess = (clip.image_features(x) @ F.normalize(texts, dim=-1).T).argmax(1)
    return 100 * (guess.numpy() == labels).mean()


def halves(name: str, split: str) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, images and labels of a data set's base classes and of its new classes."""
    names = class_names(name)
    middle = math.ceil(len(names) / 2)
    scenes = [scene for scene in scenes_of(name) if scene.split == split]
    images, labels = draw(scenes), np.array([scene.label for scene in scenes])
    base = labels < middle
    return [
        (names[:middle], images[base], labels[base]),
        (names[middle:], images[~base], labels[~base] - middle),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="emoji_student", help="any name or file of kdpl.clip, 64 x 64 pixels")
    parser.add_argument("--teacher", default="emoji_teacher")
    parser.add_argument(
        "--datasets", nargs="+", default=list(TARGETS), choices=PLANS, metavar="NAME", help="default: the targets"
    )
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    args = parser.parse_args()
    student, teacher = load_clip(args.student), load_clip(args.teacher)
    columns = {
        'student, "a photo of a {}."': (student, "a photo of a {}."),
        'student, "an icon of a {}."': (student, "an icon of a {}."),
        'teacher, "a photo of a {}."': (teacher, "a photo of a {}."),
    }
    data = [halves(name, args.split) for name in args.datasets]
    cells = np.array(  # (data sets, columns, 2)
        [[[accuracy(clip, template, *half) for half in pair] for clip, template in columns.values()] for pair in data]
    )
    rows = zip([*args.datasets, "mean"], [*cells, cells.mean(0)], strict=True)
    table = [[name, *(f"{base:.1f} / {new:.1f}" for base, new in row)] for name, row in rows]
    print(tabulate(table, headers=[f"{args.split}: base / new", *columns], tablefmt="github"))


if __name__ == "__main__":
    main()
