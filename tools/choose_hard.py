"""Choose the scenes of EmojiA: those that a plain network gets wrong with most confidence.

    python tools/choose_hard.py output/hard_scenes.txt

Trains a small convolutional network with labels on the training scenes of EmojiAll, as ImageNet-A was chosen with a ResNet
trained on ImageNet (arXiv:1907.07174). Of 16 renderings of each thing in the style of the test scenes, which no other split
has, it writes down at most four that the network gets wrong, the most confident ones. Nothing of CLIP takes part. Sums of
floating-point numbers differ between machines, so another machine may choose some other scenes: the benchmark's are those of
`datasets/emoji/hard_scenes.txt`. After a new choice its checksum in `datasets/emoji/plans.py` has to be changed.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from kdpl.common.files import atomic_write
from kdpl.datasets.emoji.plans import HARD_CANDIDATES, PLANS, SCENES, Scene, class_names, draw, scenes_of

KEPT = 4  # scenes of a thing
BATCH = 64


def network(classes: int) -> nn.Sequential:
    """Return a plain network of four convolutions with strides, and an average before the linear layer."""
    layers: list[nn.Module] = []
    channels = 3
    for width, kernel in ((32, 5), (64, 3), (128, 3), (256, 3)):
        layers += [nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False), nn.BatchNorm2d(width)]
        layers.append(nn.ReLU())
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(4 * channels, classes))


def inputs(images: np.ndarray) -> torch.Tensor:
    """Return images (n, 64, 64, 3) uint8 as numbers around 0: (n, 3, 64, 64)."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 64 - 2


def train(images: np.ndarray, labels: np.ndarray, classes: int, steps: int, seed: int) -> nn.Sequential:
    """Train with labels on images (n, 64, 64, 3), shifted by a few pixels."""
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    net = network(classes)
    optim = torch.optim.AdamW(net.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optim, 2e-3, total_steps=steps)
    start = time.monotonic()
    for step in range(steps):
        rows = random.integers(len(images), size=BATCH)
        x = torch.roll(inputs(images[rows]), tuple(random.integers(-6, 7, size=2)), (2, 3))
        loss = F.cross_entropy(net(x), torch.from_numpy(labels[rows]), label_smoothing=0.1)
        optim.zero_grad()
        loss.backward()
        optim.step()
        schedule.step()
        if (step + 1) % 500 == 0:
            print(f"{time.monotonic() - start:5.0f} s  step {step + 1:,} of {steps:,}  loss {loss.item():.2f}", flush=True)
    return net.eval()


@torch.no_grad()
def probabilities(net: nn.Sequential, images: np.ndarray) -> np.ndarray:
    """Return the network's distribution over the classes, (n, classes)."""
    chunks = np.array_split(images, max(1, len(images) // 256))
    return torch.cat([net(inputs(chunk)).softmax(1) for chunk in chunks]).numpy()


def candidates() -> list[Scene]:
    """Return all scenes that may be chosen."""
    left_out = PLANS["all"].tested
    first = [s for s in scenes_of("all") if s.split == "test" and s.number == 0 and s.style_name in left_out]
    numbers = enumerate(HARD_CANDIDATES)
    return [Scene("test", s.label, s.classname, s.style, s.thing, r, i, SCENES) for i, r in numbers for s in first]


def choose(scenes: list[Scene], probability: np.ndarray) -> dict[str, list[int]]:
    """Return for each thing the rendering numbers of at most `KEPT` scenes that are wrong with most confidence."""
    labels = np.array([scene.label for scene in scenes])
    confidence = np.where(probability.argmax(1) == labels, -1, probability.max(1))
    chosen: dict[str, list[int]] = {scene.classname: [] for scene in scenes}
    for place in np.argsort(-confidence, kind="stable"):
        numbers = chosen[scenes[place].classname]
        if confidence[place] >= 0 and len(numbers) < KEPT:
            numbers.append(scenes[place].rendering)
    return {name: sorted(chosen[name]) for name in sorted(chosen)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)

    scenes = [scene for scene in scenes_of("all") if scene.split == "train"]
    labels = np.array([scene.label for scene in scenes])
    net = train(draw(scenes), labels, len(class_names("all")), args.steps, args.seed)
    listed = candidates()
    probability = probabilities(net, draw(listed))
    chosen = choose(listed, probability)
    right = (probability.argmax(1) == [scene.label for scene in listed]).mean()
    print(f"right on {right:.1%} of {len(listed):,} candidates; {sum(map(len, chosen.values())):,} scenes chosen")
    with atomic_write(args.output, "w") as file:
        file.write(f"# python tools/choose_hard.py OUTPUT --steps {args.steps} --seed {args.seed}\n")
        file.writelines(f"{name}: {' '.join(map(str, numbers))}\n" for name, numbers in chosen.items())


if __name__ == "__main__":
    main()
