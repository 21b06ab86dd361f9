"""Photos for `kdpl fit --demo`, drawn from the embedded benchmark under names that say nothing."""

import csv
import io
import random
from pathlib import Path

from PIL import Image

from kdpl.common.files import atomic_write
from kdpl.datasets.emoji.scenes import class_names, draw, scenes_of

DATASET = "leisure"


def write_photos(folder: Path, dataset: str, classes: int, split: str) -> dict[str, str]:
    """Write the images of the first classes in a split, in random order and under names that say nothing.

    Returns:
        The truth by path.
    """
    scenes = [s for s in scenes_of(dataset) if s.split == split and s.label < classes]
    random.Random(0).shuffle(scenes)
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"IMG_{number:04d}.png" for number in range(1, len(scenes) + 1)]
    if not all(path.is_file() for path in paths):
        for path, pixels in zip(paths, draw(scenes), strict=True):
            Image.fromarray(pixels).save(path)
    return {str(path): scene.classname for path, scene in zip(paths, scenes, strict=True)}


def write_demo(output: Path) -> tuple[Path, Path]:
    """Write photos to learn from, new ones with their labels in `labels.csv`, and names; return photos and names."""
    names = output / "names.txt"
    write_photos(output / "photos", DATASET, 1000, "train")
    truth = write_photos(output / "new_photos", DATASET, 1000, "test")
    with atomic_write(names, "w") as file:
        file.write("\n".join([*class_names(DATASET), ""]))
    table = io.StringIO()
    csv.writer(table).writerows([("path", "label"), *truth.items()])
    with atomic_write(output / "labels.csv", "w", newline="") as file:
        file.write(table.getvalue())
    return output / "photos", names
