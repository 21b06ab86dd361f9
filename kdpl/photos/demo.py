"""Photos for `kdpl fit --demo`: scenes by one artist whom the embedded student has not seen, to learn from and new ones."""

import csv
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from kdpl.common.files import atomic_write
from kdpl.common.outputs import DEMO, take_folder
from kdpl.datasets.emoji.plans import Scene, class_names, draw, scenes_of

DATASET, TO_LEARN = "meals", 20  # photos of each class


def write_scenes(folder: Path, scenes: Sequence[Scene]) -> dict[str, str]:
    """Write scenes in random order, under names that say nothing, unless they are there; return the truth by path."""
    scenes = list(scenes)
    random.Random(0).shuffle(scenes)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"IMG_{number:04d}.png" for number in range(1, len(scenes) + 1)]
    if not all(path.is_file() for path in paths):
        for path, pixels in zip(paths, draw(scenes), strict=True):
            Image.fromarray(pixels).save(path)
    return {str(path): scene.classname for path, scene in zip(paths, scenes, strict=True)}


def scenes_by_one_artist(
    dataset: str = DATASET, split: str = "train", each: int = TO_LEARN, classes: int = 1000
) -> list[Scene]:
    """Return the first scenes of each class by an artist of whom the student has seen nothing, in a split of the benchmark."""
    scenes = scenes_of(f"photos_{dataset}")
    return [s for s in scenes if s.split == split and s.number < each and s.label < classes]


def write_demo(output: Path) -> tuple[Path, Path]:
    """Write photos to learn from, new ones with their labels in `labels.csv`, and names; return photos and names."""
    take_folder(output, DEMO)
    names, labels = output / "names.txt", output / "labels.csv"
    write_scenes(output / "photos", scenes_by_one_artist())
    truth = write_scenes(output / "new_photos", scenes_by_one_artist(split="test"))
    if not names.is_file():  # somebody may have changed them, or corrected labels
        with atomic_write(names, "w") as file:
            file.write("\n".join([*class_names(DATASET), ""]))
    if not labels.is_file():
        with atomic_write(labels, "w", newline="") as file:
            csv.writer(file).writerows([("path", "label"), *truth.items()])
    return output / "photos", names
