"""Print the zero-shot accuracy of the embedded CLIPs on the benchmark's test scenes, base / new classes.

    python tools/check_benchmark.py
    python tools/check_benchmark.py --sentences --split val

The second prints the student's accuracy with each of many hand-written sentences, the best first, by H.
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

SENTENCES = (
    "a photo of a {}.", "a photo of the {}.", "a photo of a small {}.", "a photo of a large {}.", "a photo of one {}.",
    "a photo of my {}.", "a photo of a nice {}.", "a photo of the hard to see {}.", "a bright photo of a {}.",
    "a picture of a {}.", "an image of a {}.", "an icon of a {}.", "the {}.", "{}.", "{}", "a {}.",
    "a cartoon of a {}.", "a sticker of a {}.", "an illustration of a {}.", "a clip art of a {}.", "a colored drawing of a {}.",
    "a drawing of a {}.", "a photo of a {} on a busy background.", "a photo of a {} on a white background.",
    "itap of a {}.", "art of the {}.", "an emoji of a {}.",
)  # fmt: skip


@torch.no_grad()
def accuracy(clip: Clip, template: str, names: list[str], images: np.ndarray, labels: np.ndarray) -> float:
    """Zero-shot top-1 in percent of images (n, 64, 64, 3) uint8 among `names`."""
    mean, std = (torch.tensor(channels)[:, None, None] for channels in (clip.mean, clip.std))
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    texts = clip.model.encode_text(clip.tokenizer([template.format(name) for name in names]))
    guess = (clip.image_features(x) @ F.normalize(texts, dim=-1).T).argmax(1)
    return 100 * (guess.numpy() == labels).mean()


def halves(name: str, split: str) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, images and labels of a data set's base classes and of its new classes."""
    names = class_names(name)
    middle = math.ceil(len(names) / 2)
    styles = PLANS[name].tested if split == "test" else PLANS[name].styles
    scenes = [scene for scene in scenes_of(name) if scene.split == split and scene.style_name in styles]
    images, labels = draw(scenes), np.array([scene.label for scene in scenes])
    base = labels < middle
    return [
        (names[:middle], images[base], labels[base]),
        (names[middle:], images[~base], labels[~base] - middle),
    ]


def print_sentences(student: Clip, datasets: list[str], split: str) -> None:
    """Print base and new accuracy and H of every sentence, means over the data sets, the best first."""
    data = [halves(name, split) for name in datasets]
    rows = []
    for sentence in SENTENCES:
        base, new = np.mean([[accuracy(student, sentence, *half) for half in pair] for pair in data], axis=0)
        rows.append([f'"{sentence}"', base, new, 2 * base * new / (base + new)])
    rows.sort(key=lambda row: -row[-1])
    images = sum(len(labels) for pair in data for _, _, labels in pair)
    print(f"{split} scenes of {', '.join(datasets)}: {images:,} images")
    print(tabulate(rows, headers=["sentence", "base", "new", "H"], tablefmt="github", floatfmt=".1f"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="emoji_student", help="any name or file of kdpl.clip, 64 x 64 pixels")
    parser.add_argument("--teacher", default="emoji_teacher")
    parser.add_argument(
        "--datasets", nargs="+", default=list(TARGETS), choices=PLANS, metavar="NAME", help="default: the targets"
    )
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    parser.add_argument("--sentences", action="store_true", help="compare hand-written sentences for the student")
    args = parser.parse_args()
    if args.sentences:
        print_sentences(load_clip(args.student), args.datasets, args.split)
        return
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
