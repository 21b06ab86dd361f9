"""Miniature copies of the fifteen data sets: CoOp's folder layouts with a few tiny images in each class.

A builder fills the folder of one data set and returns what its loader should make of it, written down here by hand.
"""

import json
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from dassl.config import get_cfg_default
from dassl.data.datasets import build_dataset
from PIL import Image
from scipy.io import savemat

import kdpl.datasets


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
    """Build a data set without the warning that a split had to be made."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
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


def numbered(prefix: str, count: int) -> list[str]:
    return [f"{prefix}_{i:03d}" for i in range(count)]


def _caltech101(root: Path) -> Expected:
    folders = ["BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "Motorbikes", "accordion", "airplanes"]
    others = numbered("thing", 95)
    folders_of(root / "caltech-101/101_ObjectCategories", folders + others, 4)
    write(root / "caltech-101/101_ObjectCategories/.DS_Store", ["not a class"])
    return Expected(["face", "leopard", "motorbike", "accordion", "airplane", *others], (200, 100, 100))


def _dtd(root: Path) -> Expected:
    names = ["banded", "blotchy", *numbered("texture", 45)]
    folders_of(root / "dtd/images", names, 4)
    return Expected(names, (94, 47, 47))


def _food101(root: Path) -> Expected:
    names = ["apple_pie", "baby_back_ribs", *numbered("dish", 99)]
    folders_of(root / "food-101/images", names, 4)
    return Expected(names, (202, 101, 101))


def _eurosat(root: Path) -> Expected:
    folders = [
        "AnnualCrop",
        "Forest",
        "HerbaceousVegetation",
        "Highway",
        "Industrial",
        "Pasture",
        "PermanentCrop",
        "Residential",
        "River",
        "SeaLake",
    ]
    folders_of(root / "eurosat/2750", folders, 10)
    names = [
        "Annual Crop Land",
        "Forest",
        "Herbaceous Vegetation Land",
        "Highway or Road",
        "Industrial Buildings",
        "Pasture Land",
        "Permanent Crop Land",
        "Residential Buildings",
        "River",
        "Sea or Lake",
    ]
    return Expected(names, (50, 20, 30))


def _oxford_pets(root: Path) -> Expected:
    breeds = ["Abyssinian", "american_bulldog", "Egyptian_Mau", *[f"Breed_{i:02d}" for i in range(34)]]
    top = root / "oxford_pets"

    def lines(first: int, count: int) -> list[str]:
        return [f"{b}_{i} {y} 1 1" for y, b in enumerate(breeds, start=1) for i in range(first, first + count)]

    write(top / "annotations/trainval.txt", lines(1, 5))
    write(top / "annotations/test.txt", lines(100, 2))
    names = [line.split()[0] for line in lines(1, 5) + lines(100, 2)]
    images(top / f"images/{name}.jpg" for name in names)
    return Expected([breed.lower() for breed in breeds], (37 * 4, 37, 37 * 2))


def _stanford_cars(root: Path) -> Expected:
    models = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012", "smart fortwo Convertible 2012"]
    models += [f"Maker Model{i} Sedan {1990 + i % 20}" for i in range(193)]
    top = root / "stanford_cars"
    (top / "devkit").mkdir(parents=True)
    savemat(top / "devkit/cars_meta.mat", {"class_names": np.array([models], dtype=object)})

    def annotate(file: str, folder: str, count: int) -> None:
        labels = [y for y in range(1, len(models) + 1) for _ in range(count)]
        names = [f"{i:05d}.jpg" for i in range(1, len(labels) + 1)]
        rows = np.zeros((1, len(labels)), dtype=[("bbox_x1", object), ("class", object), ("fname", object)])
        for i, (label, name) in enumerate(zip(labels, names, strict=True)):
            rows[0, i] = (1, label, name)
        savemat(top / file, {"annotations": rows})
        images(top / folder / name for name in names)

    annotate("devkit/cars_train_annos.mat", "cars_train", 4)
    annotate("cars_test_annos_withlabels.mat", "cars_test", 1)
    names = ["2000 AM General Hummer SUV", "2012 Ram C/V Cargo Van Minivan", "2012 smart fortwo Convertible"]
    names += [f"{1990 + i % 20} Maker Model{i} Sedan" for i in range(193)]
    return Expected(names, (196 * 3, 196, 196))


def _oxford_flowers(root: Path) -> Expected:
    top = root / "oxford_flowers"
    # the labels of the real file are not sorted either
    labels = [label for _ in range(4) for label in reversed(range(1, 103))]
    images(top / f"jpg/image_{i:05d}.jpg" for i in range(1, len(labels) + 1))
    savemat(top / "imagelabels.mat", {"labels": np.array([labels], dtype=np.uint8)})
    names = ["pink primrose", "hard-leaved pocket orchid", *numbered("flower", 100)]
    (top / "cat_to_name.json").write_text(json.dumps({str(y): name for y, name in enumerate(names, start=1)}))
    return Expected(names, (204, 102, 102))


def _sun397(root: Path) -> Expected:
    scenes = ["/a/abbey", "/a/apartment_building/outdoor", "/c/church/indoor"]
    scenes += [f"/s/scene_{i:03d}" for i in range(394)]
    top = root / "sun397"
    write(top / "ClassName.txt", scenes)
    trainval = [f"{scene}/sun_{i}.jpg" for scene in scenes for i in range(3)]
    test = [f"{scene}/sun_test.jpg" for scene in scenes]
    write(top / "Training_01.txt", trainval)
    write(top / "Testing_01.txt", test)
    images(top / f"SUN397{path}" for path in trainval + test)
    names = ["abbey", "outdoor apartment_building", "indoor church", *[f"scene_{i:03d}" for i in range(394)]]
    return Expected(names, (397 * 2, 397, 397))


def _ucf101(root: Path) -> Expected:
    actions = ["ApplyEyeMakeup", "YoYo", "TaiChi", *[f"Action{chr(65 + i // 26)}{chr(97 + i % 26)}" for i in range(98)]]
    names = ["Apply_Eye_Makeup", "Yo_Yo", "Tai_Chi"]
    names += [f"Action_{chr(65 + i // 26)}{chr(97 + i % 26)}" for i in range(98)]
    top = root / "ucf101"
    lists = top / "ucfTrainTestlist"
    write(lists / "classInd.txt", [f"{y} {action}" for y, action in enumerate(actions, start=1)])
    write(
        lists / "trainlist01.txt",
        [f"{a}/v_{a}_g08_c{i:02d}.avi {y}" for y, a in enumerate(actions, start=1) for i in range(1, 5)],
    )
    write(lists / "testlist01.txt", [f"{a}/v_{a}_g01_c01.avi" for a in actions])
    clips = [f"g08_c{i:02d}" for i in range(1, 5)] + ["g01_c01"]
    images(
        top / f"UCF-101-midframes/{name}/v_{action}_{clip}.jpg"
        for action, name in zip(actions, names, strict=True)
        for clip in clips
    )
    return Expected(names, (101 * 3, 101, 101))


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


def _imagenet_v2(root: Path) -> Expected:
    top = root / "imagenetv2"
    write(top / "classnames.txt", [f"{w} {name}" for w, name in zip(WNIDS, IMAGENET_NAMES, strict=True)])
    folders_of(top / "imagenetv2-matched-frequency-format-val", map(str, range(6)), 2)
    return Expected(IMAGENET_NAMES, (12, 0, 12))


def _imagenet_sketch(root: Path) -> Expected:
    top = root / "imagenet-sketch"
    write(top / "classnames.txt", [f"{w} {name}" for w, name in zip(WNIDS, IMAGENET_NAMES, strict=True)])
    folders_of(top / "images", WNIDS, 2, ".JPEG")
    return Expected(IMAGENET_NAMES, (12, 0, 12))


def _imagenet_part(top: Path, folder: str) -> Expected:
    wnids = [f"n{i:08d}" for i in range(0, 420, 2)]
    names = [f"noun {i}" for i in range(210)]
    write(top / "classnames.txt", [f"{w} {name}" for w, name in zip(wnids, names, strict=True)])
    folders_of(top / folder, wnids[10:], 1)
    write(top / folder / "README.txt", ["not a class"])
    return Expected(names[10:], (200, 0, 200))


BUILDERS: dict[str, Callable[[Path], Expected]] = {
    "ImageNet": _imagenet,
    "Caltech101": _caltech101,
    "OxfordPets": _oxford_pets,
    "StanfordCars": _stanford_cars,
    "OxfordFlowers": _oxford_flowers,
    "Food101": _food101,
    "FGVCAircraft": _fgvc_aircraft,
    "SUN397": _sun397,
    "DescribableTextures": _dtd,
    "EuroSAT": _eurosat,
    "UCF101": _ucf101,
    "ImageNetV2": _imagenet_v2,
    "ImageNetSketch": _imagenet_sketch,
    "ImageNetA": lambda root: _imagenet_part(root / "imagenet-adversarial", "imagenet-a"),
    "ImageNetR": lambda root: _imagenet_part(root / "imagenet-rendition", "imagenet-r"),
}
