"""The embedded benchmark: emoji of two artists in random scenes, five categories as five data sets.

Art, licences and the two CLIPs that belong to it lie in `embedded`; docs/benchmark.md describes it.
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from dassl.data.datasets import Datum
from PIL import Image
from yacs.config import CfgNode

from kdpl.common.files import cache_dir, rename_folder
from kdpl.config.choices import check_choice
from kdpl.datasets.base import ClassListDataset, blind_draw, draws_blindly, fewshot, subsample_classes
from kdpl.datasets.emoji.generator import GENERATOR_VERSION, draw_scenes

EMBEDDED = Path(__file__).parents[1] / "embedded"
STYLES = ("twemoji", "fluent")
SPLITS = {"train": range(8), "val": range(100, 102), "test": range(200, 204)}  # rendering numbers, for each style
SHA256 = {  # of a category's pixels, in the order of `category_scenes`
    "food": "318c5876ffbbbc4f0ba6d3303cdd8b612eefa38f8c4c8e294fa7c2357de72ab5",
    "activities": "f1d0eddc78d4458bdef6d4cbdc099f4c5ffd589ba239030fb8406342f4a0ad46",
    "animals": "f2eee7dc8ef39e13e93b0148784661b63c1f4bd3a7e9e452ecb2a75f829359e4",
    "travel": "72291d48533abe74048a7756f59dc1c7bfa4d6b8d51a9b58ac2a082834195f3c",
    "objects": "2e18e8318f2ab1c3a3a386f303ab79f51233b4eb2c49f8f2c26759eca1a87ae4",
}
_MARKER = "scenes.json"


@dataclass(frozen=True)
class Scene:
    """One image of the benchmark: its place, and what it is drawn from."""

    split: str
    label: int
    classname: str
    style: int  # index into STYLES
    drawing: int  # row of `art()`
    rendering: int

    @property
    def path(self) -> str:
        """The image file, relative to the category's folder."""
        number = self.rendering - SPLITS[self.split].start
        return f"{self.split}/{self.classname.replace(' ', '_')}/{STYLES[self.style]}_{number}.png"


@lru_cache(maxsize=1)
def art() -> np.ndarray:
    """Return the drawings, two a class, Twemoji first: (1134, 64, 64, 4) uint8, RGBA with straight alpha."""
    with np.load(EMBEDDED / "art.npz", allow_pickle=False) as file:
        return file["rgba"].reshape(-1, *file["rgba"].shape[2:])


@lru_cache(maxsize=1)
def _class_rows() -> dict[str, dict[str, int]]:
    """For each category the row of each class in the art, the classes sorted by name."""
    with np.load(EMBEDDED / "art.npz", allow_pickle=False) as file:
        names, categories = file["names"].tolist(), file["categories"].tolist()
    return {
        category: dict(sorted((name, row) for row, name in enumerate(names) if categories[row] == category))
        for category in SHA256
    }


def class_names(category: str) -> list[str]:
    """Return the class names of a category, sorted: the label of a name is its place."""
    return list(_class_rows()[category])


def category_scenes(category: str) -> list[Scene]:
    """Return all scenes of a category: class by class, in a class by split, then style, then number."""
    return [
        Scene(split, label, name, style, len(STYLES) * row + style, rendering)
        for label, (name, row) in enumerate(_class_rows()[category].items())
        for split, renderings in SPLITS.items()
        for style in range(len(STYLES))
        for rendering in renderings
    ]


def draw(scenes: Sequence[Scene]) -> np.ndarray:
    """Draw scenes in memory: (n, 64, 64, 3) uint8 RGB."""
    return draw_scenes(art(), np.array([s.drawing for s in scenes]), np.array([s.rendering for s in scenes]))


def scene_folder(root: str | os.PathLike, category: str) -> Path:
    """Return the folder with a category's images under `root`, drawing them first unless they are there already.

    A folder appears only when it is complete, whatever interrupts the drawing and however many processes draw at once.
    One that was drawn by another version of the generator, or that lost files, is replaced.

    Raises:
        FileExistsError: a folder of that name is there that was not drawn by this function.
        OSError: the folder cannot be written.
        RuntimeError: the pixels are not the benchmark's.
    """
    folder = Path(root).expanduser().absolute() / EmojiScenes.dataset_dir / category
    if _is_current(folder, category):
        return folder
    if folder.exists() and not (folder / _MARKER).is_file():
        raise FileExistsError(
            f"'{folder}' was not drawn by KDPL: it has no {_MARKER}. Move it away, or set DATASET.ROOT to another folder."
        )
    scenes = category_scenes(category)
    print(f"Drawing {len(scenes):,} emoji scenes into {folder}")
    images = draw(scenes)
    digest = hashlib.sha256(images).hexdigest()
    if digest != SHA256[category]:
        raise RuntimeError(
            f"The scenes of '{category}' have SHA-256 {digest}, expected {SHA256[category]}. "
            f"'{EMBEDDED / 'art.npz'}' or the generator was changed; install KDPL again."
        )
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{category}.") as temporary:
            new = Path(temporary, "new")
            _write(new, scenes, images, category)
            _install(new, folder, Path(temporary, "stale"), category)
    except OSError as error:
        raise OSError(
            f"Cannot write the emoji scenes to '{folder}': {error}. "
            "Set DATASET.ROOT (--root) or the environment variable KDPL_CACHE to a folder with room that you may write."
        ) from error
    return folder


def _marker(category: str) -> dict:
    return {"generator": GENERATOR_VERSION, "sha256": SHA256[category]}


def _is_current(folder: Path, category: str) -> bool:
    try:
        marker = json.loads((folder / _MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return marker == _marker(category) and all(os.path.isfile(folder / scene.path) for scene in category_scenes(category))


def _write(folder: Path, scenes: Sequence[Scene], images: np.ndarray, category: str) -> None:
    for scene, image in zip(scenes, images, strict=True):
        path = folder / scene.path
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path, compress_level=1)  # noise hardly compresses: more effort only costs time
    (folder / _MARKER).write_text(json.dumps(_marker(category)), encoding="utf-8")


def _install(new: Path, folder: Path, stale: Path, category: str) -> None:
    """Rename `new` to `folder`; a stale folder there is moved away first, a current one of another process stays."""
    if folder.exists() and not _is_current(folder, category):
        with contextlib.suppress(FileNotFoundError):  # another process was first to move it
            os.rename(folder, stale)
    try:
        rename_folder(new, folder)  # never replaces a folder that has files in it
    except OSError:
        if not _is_current(folder, category):
            raise


class EmojiScenes(ClassListDataset):
    """One category of the embedded benchmark: 16 training, 4 validation and 8 test images a class, half of each style.

    Reads DATASET.ROOT (where the images are drawn at first use; empty: the cache folder), DATASET.NUM_SHOTS,
    DATASET.SUBSAMPLE_CLASSES, SEED, and DATASET.SOURCE_DOMAINS and DATASET.TARGET_DOMAINS: the styles to train and
    validate on and to test on (empty: both).

    Raises:
        ValueError: a domain is not a style, or DATASET.SUBSAMPLE_CLASSES is unknown.
        OSError, RuntimeError: see `scene_folder`.
    """

    dataset_dir = "emoji_scenes"
    domains = STYLES
    category: str

    def __init__(self, cfg: CfgNode):
        sources = _style_indices("SOURCE_DOMAINS", cfg.DATASET.SOURCE_DOMAINS)
        targets = _style_indices("TARGET_DOMAINS", cfg.DATASET.TARGET_DOMAINS)
        folder = scene_folder(cfg.DATASET.ROOT or cache_dir(), self.category)
        self.dataset_dir = str(folder)

        styles = {"train": sources, "val": sources, "test": targets}
        splits = {split: [] for split in SPLITS}
        for scene in category_scenes(self.category):
            if scene.style in styles[scene.split]:
                datum = Datum(str(folder / scene.path), scene.label, scene.style, scene.classname)
                splits[scene.split].append(datum)
        train, val = splits["train"], splits["val"]
        blind = draws_blindly(cfg)
        if not blind:
            train, val = fewshot(self, train, val, cfg.DATASET.NUM_SHOTS, cfg.SEED)
        train, val, test = subsample_classes(train, val, splits["test"], subsample=cfg.DATASET.SUBSAMPLE_CLASSES)
        drawn = blind_draw(train, cfg.DATASET.NUM_SHOTS, cfg.SEED) if blind else train
        super().__init__(train, train_x=drawn, val=val, test=test)


def _style_indices(key: str, chosen: Sequence[str]) -> list[int]:
    for style in chosen:
        check_choice(f"DATASET.{key}", style, STYLES)
    return [STYLES.index(style) for style in chosen or STYLES]


CATEGORIES = {
    "food": "84 kinds of food and drink.",
    "activities": "58 things of sports, games and festivities.",
    "animals": "107 animals and plants.",
    "travel": "153 vehicles, buildings, landscapes and kinds of weather.",
    "objects": "165 things of use.",
}


def _category_class(category: str) -> type[EmojiScenes]:
    members = {"__doc__": CATEGORIES[category], "__module__": __name__, "category": category}
    return type(f"Emoji{category.capitalize()}", (EmojiScenes,), members)


DATASETS = {c.__name__: c for c in map(_category_class, CATEGORIES)}
globals().update(DATASETS)  # so that a class is found, and pickled, by its name
