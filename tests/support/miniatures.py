"""Miniature copies of the fifteen data sets: CoOp's folder layouts with a few tiny images in each class.

A builder fills the folder of one data set and returns what its loader should make of it, written down here by hand.
"""

import json
import os
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from PIL import Image

import kdpl.datasets
from kdpl.datasets.coop.catalog import CATALOG


class Expected(NamedTuple):
    """Class names in the order of their labels, and the lengths of the training, validation and test lists."""

    classnames: list[str]
    sizes: tuple[int, int, int]


def config(root, name: str, **dataset):
    """A configuration as train.py builds it, with keys of DATASET set; `seed` sets SEED."""
    cfg = get_cfg_default()
    kdpl.extend_cfg(cfg)
    cfg.SEED = dataset.pop("seed", 1)
    cfg.DATASET.ROOT = str(root)
    cfg.DATASET.NAME = name
    for key, value in dataset.items():
        cfg.DATASET[key] = value
    return cfg


def load(root, name: str, **dataset):
    return build_dataset(config(root, name, **dataset))


def images(paths: Iterable[Path]) -> None:
    """Put a real 8 x 8 image at every path; they are one file with many names, which is quick to make."""
    first = None
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if first is None:
            Image.new("RGB", (8, 8), (200, 80, 40)).save(path, "JPEG")
            first = path
        else:
            os.link(first, path)


def write(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def folders_of(top: Path, names: Iterable[str], count: int, suffix: str = ".jpg") -> None:
    images(top / name / f"image_{i:04d}{suffix}" for name in names for i in range(1, count + 1))


def publish(root: Path, name: str, split: dict) -> Path:
    """Write a split file in the place of the published one."""
    path = root / CATALOG[name].folder / f"split_zhou_{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(split))
    return path


def _with_split(root: Path, name: str, folders: str, classnames: list[str]) -> Expected:
    """Ten images a class in the image folder, at places such as "{i}/image_{n}.jpg": five train, two validate, three test."""
    top = root / CATALOG[name].folder / CATALOG[name].images
    split = {"train": [], "val": [], "test": []}
    for part, numbers in (("train", range(1, 6)), ("val", range(6, 8)), ("test", range(8, 11))):
        for label, classname in enumerate(classnames):
            split[part] += [[folders.format(name=classname.replace(" ", ""), n=n), label, classname] for n in numbers]
    images(top / row[0] for rows in split.values() for row in rows)
    publish(root, name, split)
    return Expected(classnames, tuple(len(rows) for rows in split.values()))


def _stanford_cars(root: Path) -> Expected:
    expected = _with_split(root, "StanfordCars", "cars_train/{name}_{n}.jpg", ["2000 AM General Hummer SUV", "2012 Ram C"])
    (root / "stanford_cars/cars_test").mkdir()
    return expected


def _fgvc_aircraft(root: Path) -> Expected:
    variants = ["707-320", "Cessna 172", "F-16A/B", *[f"Model {i}" for i in range(97)]]
    top = root / "fgvc_aircraft"
    write(top / "variants.txt", variants)
    for part, digit, count in (("train", 1, 2), ("val", 2, 1), ("test", 3, 1)):
        lines = [f"{digit}{i}{y:05d} {v}" for y, v in enumerate(variants) for i in range(count)]
        write(top / f"images_variant_{part}.txt", lines)
        images(top / f"images/{line.split()[0]}.jpg" for line in lines)
    return Expected(variants, (200, 100, 100))


WNIDS = ["n01440764", "n01443537", "n02012849", "n03126707", "n03710637", "n15075141"]
IMAGENET_NAMES = ["tench", "goldfish", "crane", "crane", "maillot", "toilet paper"]


def _imagenet(root: Path) -> Expected:
    top = root / "imagenet"
    write(top / "classnames.txt", [f"{w} {name}" for w, name in zip(WNIDS, IMAGENET_NAMES, strict=True)])
    folders_of(top / "images/train", WNIDS, 3, ".JPEG")
    folders_of(top / "images/val", WNIDS, 2, ".JPEG")
    return Expected(IMAGENET_NAMES, (18, 12, 12))


def _imagenet_test(folder: str, places: Iterable[str], root: Path) -> Expected:
    top = root / folder.partition("/")[0]
    write(top / "classnames.txt", [f"{w} {name}" for w, name in zip(WNIDS, IMAGENET_NAMES, strict=True)])
    folders_of(root / folder, places, 2, ".JPEG")
    return Expected(IMAGENET_NAMES, (12, 0, 12))


def _imagenet_part(folder: str, root: Path) -> Expected:
    wnids = [f"n{i:08d}" for i in range(0, 420, 2)]
    names = [f"noun {i}" for i in range(210)]
    write((root / folder).parent / "classnames.txt", [f"{w} {name}" for w, name in zip(wnids, names, strict=True)])
    folders_of(root / folder, wnids[10:], 1)
    write(root / folder / "README.txt", ["not a class"])
    return Expected(names[10:], (200, 0, 200))


def _of_folders(name: str, *classnames: str, folders: str = "{name}/image_{n:04d}.jpg") -> Callable[[Path], Expected]:
    return partial(_with_split, name=name, folders=folders, classnames=list(classnames))


BUILDERS: dict[str, Callable[[Path], Expected]] = {
    "ImageNet": _imagenet,
    "Caltech101": _of_folders("Caltech101", "face", "leopard", "motorbike"),
    "OxfordPets": _of_folders("OxfordPets", "abyssinian", "beagle", "egyptian_mau", folders="{name}_{n}.jpg"),
    "StanfordCars": _stanford_cars,
    "OxfordFlowers": _of_folders("OxfordFlowers", "pink primrose", "daffodil", folders="image_{name}{n}.jpg"),
    "Food101": _of_folders("Food101", "apple_pie", "baby_back_ribs"),
    "FGVCAircraft": _fgvc_aircraft,
    "SUN397": _of_folders("SUN397", "abbey", "outdoor apartment_building", folders="a/{name}/sun_{n}.jpg"),
    "DescribableTextures": _of_folders("DescribableTextures", "banded", "blotchy"),
    "EuroSAT": _of_folders("EuroSAT", "Annual Crop Land", "Forest", "Highway or Road", "River", "Sea or Lake"),
    "UCF101": _of_folders("UCF101", "Apply_Eye_Makeup", "Yo_Yo", "Tai_Chi", folders="{name}/v_{n}.jpg"),
    "ImageNetV2": partial(_imagenet_test, "imagenetv2/imagenetv2-matched-frequency-format-val", list(map(str, range(6)))),
    "ImageNetSketch": partial(_imagenet_test, "imagenet-sketch/images", WNIDS),
    "ImageNetA": partial(_imagenet_part, "imagenet-adversarial/imagenet-a"),
    "ImageNetR": partial(_imagenet_part, "imagenet-rendition/imagenet-r"),
}
