"""Print the zero-shot accuracy of the embedded CLIPs on the benchmark's test scenes, base / new classes.

    python tools/check_benchmark.py

The scenes are drawn in memory: no cache folder is written or read. Candidates are the classes of the half alone, as in
base-to-new evaluation, so the two figures of a cell have half as many classes each.
"""

import argparse
import math
from pathlib import Path

import clip
import numpy as np
import torch
from clip.model import CLIP, build_model
from kdpl.datasets.emoji_scenes import EMBEDDED, SHA256, category_scenes, class_names, draw
from safetensors.torch import load_file
from tabulate import tabulate
from torch.nn import functional as F

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
STUDENT, TEACHER = EMBEDDED / "emoji_student.safetensors", EMBEDDED / "emoji_teacher.safetensors"


def load(path: Path) -> CLIP:
    state = load_file(path)
    used = state.pop("token_embedding.used").long()
    for key, length, rows in (
        ("token_embedding.weight", 49408, used),
        ("positional_embedding", 77, torch.arange(len(state["positional_embedding"]))),
    ):
        full = torch.zeros(length, state[key].shape[1])
        full[rows] = state[key].float()
        state[key] = full
    return build_model(state).float().eval()


@torch.no_grad()
def accuracy(net: CLIP, template: str, names: list[str], images: np.ndarray, labels: np.ndarray) -> float:
    """Zero-shot top-1 in percent of images (n, 64, 64, 3) uint8 among `names`."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
    texts = F.normalize(net.encode_text(clip.tokenize([template.format(name) for name in names])), dim=-1)
    guess = ((net.encode_image((x - MEAN) / STD)) @ texts.T).argmax(1)
    return 100 * (guess.numpy() == labels).mean()


def halves(category: str, split: str) -> list[tuple[list[str], np.ndarray, np.ndarray]]:
    """Names, images and labels of a category's base classes and of its new classes."""
    names = class_names(category)
    middle = math.ceil(len(names) / 2)
    scenes = [scene for scene in category_scenes(category) if scene.split == split]
    images, labels = draw(scenes), np.array([scene.label for scene in scenes])
    base = labels < middle
    return [
        (names[:middle], images[base], labels[base]),
        (names[middle:], images[~base], labels[~base] - middle),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", type=Path, default=STUDENT)
    parser.add_argument("--teacher", type=Path, default=TEACHER)
    parser.add_argument("--split", choices=["train", "val", "test"], default="test")
    args = parser.parse_args()
    student, teacher = load(args.student), load(args.teacher)
    rows = {
        'student, "a photo of a {}."': (student, "a photo of a {}."),
        'student, "an icon of a {}."': (student, "an icon of a {}."),
        'teacher, "a photo of a {}."': (teacher, "a photo of a {}."),
    }
    data = [halves(category, args.split) for category in SHA256]
    table = []
    for title, (net, template) in rows.items():
        cells = np.array([[accuracy(net, template, *half) for half in pair] for pair in data])  # (categories, 2)
        table.append([title, *(f"{base:.1f} / {new:.1f}" for base, new in [*cells, cells.mean(0)])])
    print(tabulate(table, headers=[f"{args.split}: base / new", *SHA256, "mean"], tablefmt="github"))


if __name__ == "__main__":
    main()
