"""How the lists of each data set are read from its own files, by CoOp's rules (arXiv:2109.01134).

A reader takes the data set's folder and returns its three lists. Where the data set has no validation or test list of
its own, the lists are divided by CoOp's proportions, with a fixed seed: the run's seed has no part in it.
"""

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import accumulate, pairwise
from pathlib import PurePosixPath

from kdpl.datasets.coop.folder import DataFolder, Record, Split

SPLIT_SEED = 0
IN_THREE = (0.5, 0.2)  # of every class half for training and a fifth for validation; the rest is for testing


def class_folders(data: DataFolder) -> Split:
    """Half of every class folder trains, a fifth validates, the rest tests (DTD, Caltech101, EuroSAT, Food101)."""
    names = {folder: data.facts.renamed.get(folder, folder) for folder in _counted_folders(data)}
    return Split(*_divided(data, _by_folder(data, names), *IN_THREE))


def oxford_flowers(data: DataFolder) -> Split:
    """Labels from imagelabels.mat, names from cat_to_name.json, divided as the class folders are."""
    names = data.json("cat_to_name.json")
    records = []
    for number, label in enumerate(data.mat("imagelabels.mat", "labels"), start=1):
        if str(label) not in names:
            raise data.damaged(f"cat_to_name.json has no name for label {label} of imagelabels.mat.")
        records.append(Record(f"image_{number:05d}.jpg", int(label) - 1, names[str(label)]))
    return Split(*_divided(data, records, *IN_THREE))


def oxford_pets(data: DataFolder) -> Split:
    """Breeds from the image names in annotations/trainval.txt and test.txt."""

    def read(name: str) -> list[Record]:
        return [
            Record(f"{image}.jpg", _number(data, place, label) - 1, image.rpartition("_")[0].lower())
            for place, (image, label, *_) in data.fields(name, 4)
        ]

    return _with_val(data, read("annotations/trainval.txt"), read("annotations/test.txt"))


def stanford_cars(data: DataFolder) -> Split:
    """Car models from the MATLAB annotations, the year moved to the front of the name."""
    models = data.mat("devkit/cars_meta.mat", "class_names")

    def read(folder: str, name: str) -> list[Record]:
        records = []
        for row in data.mat(name, "annotations"):
            label = int(row["class"]) - 1
            if not 0 <= label < len(models):
                raise data.damaged(f"{name} has class {label + 1}; devkit/cars_meta.mat names {len(models)} classes.")
            model, _, year = models[label].rpartition(" ")
            records.append(Record(f"{folder}/{row['fname']}", label, f"{year} {model}"))
        return records

    trainval = read("cars_train", "devkit/cars_train_annos.mat")
    return _with_val(data, trainval, read("cars_test", "cars_test_annos_withlabels.mat"))


def sun397(data: DataFolder) -> Split:
    """Scenes from the first partition; `/a/apartment_building/outdoor` is called "outdoor apartment_building"."""
    labels = {line.strip("/"): label for label, (_, line) in enumerate(data.lines("ClassName.txt"))}

    def read(name: str) -> list[Record]:
        records = []
        for place, line in data.lines(name):
            scene = PurePosixPath(line.strip("/")).parent
            label = _label(data, place, str(scene), labels, "ClassName.txt")
            records.append(Record(line.strip("/"), label, " ".join(reversed(scene.parts[1:]))))
        return records

    return _with_val(data, read("Training_01.txt"), read("Testing_01.txt"))


def ucf101(data: DataFolder) -> Split:
    """Actions from the first split of the recognition task; `YoYo` is called "Yo_Yo", its images are middle frames."""
    lists = "ucfTrainTestlist"
    labels = {action: _number(data, place, number) - 1 for place, (number, action) in data.fields(f"{lists}/classInd.txt", 2)}

    def read(name: str) -> list[Record]:
        records = []
        for place, line in data.lines(f"{lists}/{name}"):
            action, _, video = line.split()[0].partition("/")
            label = _label(data, place, action, labels, f"{lists}/classInd.txt")
            classname = "_".join(re.findall("[A-Z][^A-Z]*", action))
            records.append(Record(f"{classname}/{PurePosixPath(video).stem}.jpg", label, classname))
        return records

    return _with_val(data, read("trainlist01.txt"), read("testlist01.txt"))


def fgvc_aircraft(data: DataFolder) -> Split:
    """The data set's own three lists of variants."""
    labels = {variant: label for label, (_, variant) in enumerate(data.lines("variants.txt"))}

    def read(part: str) -> list[Record]:
        return [
            Record(f"{image}.jpg", _label(data, place, variant, labels, "variants.txt"), variant)
            for place, (image, variant) in data.fields(f"images_variant_{part}.txt", 2)
        ]

    return Split(read("train"), read("val"), read("test"))


def imagenet(data: DataFolder) -> Split:
    """All of train, and the validation images as the test list."""
    names = _classnames(data)

    def read(part: str) -> list[Record]:
        return _by_folder(data, {f"{part}/{folder}": names[folder] for folder in _class_folders(data, names, part)})

    return Split(read("train"), [], read("val"))


def imagenet_v2(data: DataFolder) -> Split:
    """Folders 0, 1, ... are the classes in the order of classnames.txt."""
    names = _classnames(data)
    numbers = [str(label) for label in range(len(names))]
    _class_folders(data, numbers)
    return Split([], [], _by_folder(data, dict(zip(numbers, names.values(), strict=True))))


def imagenet_sketch(data: DataFolder) -> Split:
    """A folder for each of ImageNet's classes."""
    names = _classnames(data)
    return Split([], [], _by_folder(data, {folder: names[folder] for folder in _class_folders(data, names)}))


def imagenet_part(data: DataFolder) -> Split:
    """A folder for each of 200 of ImageNet's classes, labelled from 0 (ImageNet-A and ImageNet-R)."""
    names = _classnames(data)
    folders = _counted_folders(data)
    if unknown := [folder for folder in folders if folder not in names]:
        raise data.damaged(f"classnames.txt has no name for the folder {unknown[0]}.")
    return Split([], [], _by_folder(data, {folder: names[folder] for folder in folders}))


def _counted_folders(data: DataFolder) -> list[str]:
    """Return the class folders, as many as the data set has classes."""
    facts = data.facts
    folders = [f for f in data.subfolders(facts.images) if f not in facts.ignored]
    if len(folders) != facts.classes:
        raise data.missing(
            f"{data.images} holds {len(folders)} class folders, {facts.classes} expected: the data set is incomplete, "
            f"or something else lies beside its classes."
        )
    return folders


def _classnames(data: DataFolder) -> dict[str, str]:
    return {folder: name for _, (folder, name) in data.fields("classnames.txt", 2)}


def _class_folders(data: DataFolder, expected: Iterable[str], part: str = ".") -> list[str]:
    """Return the sorted class folders of a part of the images, which must be the expected ones."""
    place, folders = data.images / part, data.subfolders(f"{data.facts.images}/{part}")
    absent, surplus = sorted(set(expected) - set(folders)), sorted(set(folders) - set(expected))
    if absent:
        raise data.missing(f"{len(absent):,} class folders that classnames.txt names are not in {place}: {absent[0]}.")
    if surplus:
        raise data.damaged(f"{place} holds a folder {surplus[0]} that is no class of classnames.txt.")
    return folders


def _by_folder(data: DataFolder, names: dict[str, str]) -> list[Record]:
    """Return the images of folders, each of which is a class, labelled in their order."""
    return [
        Record(f"{folder}/{name}", label, classname)
        for label, (folder, classname) in enumerate(names.items())
        for name in data.image_names(f"{data.facts.images}/{folder}")
    ]


def _with_val(data: DataFolder, trainval: list[Record], test: list[Record]) -> Split:
    """Take 20% of every class of the training list for validation."""
    val, train = _divided(data, trainval, 0.2)
    return Split(train, val, test)


def _divided(data: DataFolder, records: list[Record], *shares: float) -> list[list[Record]]:
    """Return shares of every class, drawn at random, and as the last part the rest."""
    groups, rng = defaultdict(list), random.Random(SPLIT_SEED)
    for record in records:
        groups[record.label].append(record)
    parts: list[list[Record]] = [[] for _ in (*shares, "rest")]
    for group in groups.values():
        rng.shuffle(group)
        ends = accumulate(round(len(group) * share) for share in shares)
        pieces = [group[start:end] for start, end in pairwise([0, *ends, len(group)])]
        if not all(pieces):
            raise data.missing(f"class '{group[0].classname}' has {len(group)} images, too few to divide into a split.")
        for part, piece in zip(parts, pieces, strict=True):
            part.extend(piece)
    return parts


def _label(data: DataFolder, place: str, name: str, labels: dict[str, int], origin: str) -> int:
    if name not in labels:
        raise data.damaged(f"{place} names the class '{name}', which {origin} does not have.")
    return labels[name]


def _number(data: DataFolder, place: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise data.damaged(f"{place} has {text!r} where a number is expected.")
    return int(text)


LISTING = (class_folders, imagenet, imagenet_v2, imagenet_sketch, imagenet_part)  # their images are those that the folders hold
