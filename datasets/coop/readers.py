"""How the lists of each data set are read: from the published split file, or by the data set's own lists or folders."""

from collections.abc import Iterable

from kdpl.datasets.coop.folder import DataFolder, Record, Split


def published_split(data: DataFolder) -> Split:
    """The split file of CoOp's authors."""
    split = read_split(data, data.facts.published_split)
    print(f"Reading split from {data.path / data.facts.published_split}")
    return split


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
    folders = data.subfolders(data.facts.images)
    if len(folders) != data.facts.classes:
        raise data.missing(f"{data.images} holds {len(folders)} class folders, {data.facts.classes} expected.")
    if unknown := [folder for folder in folders if folder not in names]:
        raise data.damaged(f"classnames.txt has no name for the folder {unknown[0]}.")
    return Split([], [], _by_folder(data, {folder: names[folder] for folder in folders}))


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


def _label(data: DataFolder, place: str, name: str, labels: dict[str, int], origin: str) -> int:
    if name not in labels:
        raise data.damaged(f"{place} names the class '{name}', which {origin} does not have.")
    return labels[name]


def read_split(data: DataFolder, name: str) -> Split:
    """Read a split file: JSON with the lists "train", "val" and "test" of `[path in the image folder, label, class name]`."""
    content = data.json(name)
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in Split._fields):
        raise data.damaged(f"{name} is not a split file: expected the lists 'train', 'val' and 'test'.")
    return Split(*(_records(data, name, part, content[part]) for part in Split._fields))


def _records(data: DataFolder, name: str, part: str, rows: list) -> list[Record]:
    records = [_record(row) for row in rows]
    if None in records:
        number = records.index(None)
        raise data.damaged(
            f"{name}: entry {number + 1} of '{part}' is {str(rows[number])[:80]}; expected [image path relative to "
            f"{data.images.name}/, label, class name]."
        )
    return records


def _record(row) -> Record | None:
    if not (isinstance(row, list) and len(row) == 3):
        return None
    path, label, classname = row
    try:
        label = int(label)
    except (TypeError, ValueError, OverflowError):
        return None
    if not (isinstance(path, str) and label >= 0 and isinstance(classname, str)):
        return None
    inside = path and not path.startswith("/") and ".." not in path.split("/") and "\0" not in path
    return Record(path, label, classname) if inside else None


LISTING = (imagenet, imagenet_v2, imagenet_sketch, imagenet_part)  # their images are those that the folders hold
