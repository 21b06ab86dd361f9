"""Any folder of photos as a data set: class names from a text file or none, labels only for images to test."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.data import DataManager
from dassl.data.datasets import Datum
from torch.utils.data import Dataset
from yacs.config import CfgNode

from kdpl.bundle.learned import refuse_doubles
from kdpl.common import distributed, sources
from kdpl.common.images import BadImageError, cut_extreme, list_images, open_image, unreadable
from kdpl.common.messages import did_you_mean
from kdpl.common.safe_text import read_class_names
from kdpl.config.keys import is_distilled
from kdpl.datasets.base import ClassListDataset, draw_images, fewshot

LABELLED = ("test", "val")  # folders of the root whose subfolders are classes; the rest is for training
SHOWN = 10  # unreadable images in an error; the log has all


class Photos(Dataset):
    """The images of a split, read by `open_image`; the arguments are those of Dassl's wrappers.

    With DATASET.ON_BAD_IMAGE "skip" the next readable training image replaces an unreadable one (of others it would change the
    result), and the entry `unreadable` holds the reason; it is empty for all others.
    """

    def __init__(self, cfg: CfgNode, data_source: Sequence[Datum], transform: Any = None, is_train: bool = False):
        self.data_source, self.transform = data_source, transform
        self.replace = is_train and cfg.DATASET.ON_BAD_IMAGE == "skip"

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        reason = ""
        for place in range(len(self)):
            item = self.data_source[(index + place) % len(self)]
            try:
                image = cut_extreme(open_image(item.impath))
                break
            except BadImageError as error:
                if not self.replace:
                    raise
                reason = reason or str(error)
        else:
            raise BadImageError(f"Not one of the {len(self):,} training images can be read, the first because: {reason}")
        facts = {"label": item.label, "domain": item.domain, "impath": item.impath, "index": int(index)}
        return {**facts, "img": self.transform(image), "unreadable": reason}


class FolderManager(DataManager):
    """The loaders of an `ImageFolder`; None if it does not have the split."""

    def __init__(self, cfg: CfgNode):
        super().__init__(cfg, dataset_wrapper=Photos)
        if not self.dataset.has_train:
            self.train_loader_x = None
        if not self.dataset.has_test:
            self.test_loader = None

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print the number of images of each split and of class names."""
        dataset, val = self.dataset, len(self.dataset.val or ())
        train, test = len(dataset.train_x) * dataset.has_train, len(dataset.test) * dataset.has_test
        print(f"{dataset.dataset_dir}: {train:,} images to train on, {val:,} to validate, {test:,} to test")
        print(f"{dataset.num_classes:,} class names" if dataset.num_classes else "No class names")


class ImageFolder(ClassListDataset):
    """Images at any depth below DATASET.ROOT, with or without subfolders.

    All images are for training but those in the folders `test` and `val` of the root, which are evaluated and never trained
    on: their subfolders are classes. A KDPL trainer gets label 0 for every training image; for a supervised one the nearest
    folder that is named like a class is the label.

    The root may also be tar shards or a data set of Hugging Face (`kdpl.common.sources`), whose images are all for training.

    Reads DATASET.ROOT, DATASET.CLASSNAMES (a text file with a class name in each line; empty: none are known, for
    class-agnostic training), DATASET.IMAGE_LIST (a JSON list of the training images, relative to the root; empty: all that are
    found, and `test` and `val` are evaluated), DATASET.ON_BAD_IMAGE ("skip" or "error"), DATASET.NUM_SHOTS (below 1: all
    images) and SEED.

    Raises:
        FileNotFoundError: the folder or the file of names is not there, or the folder has no images.
        BadImageError: an image cannot be read, and DATASET.ON_BAD_IMAGE is "error".
        ValueError: no class names and a training that needs them, or a folder that is no class.
    """

    data_manager = FolderManager

    def __init__(self, cfg: CfgNode):
        root = cfg.DATASET.ROOT
        if not root or not (os.path.isdir(os.path.expanduser(root)) or sources.is_source(root)):
            raise FileNotFoundError(f"DATASET.ROOT (--root) '{root}' is not a folder: expected the folder with your images.")
        self.root = sources.absolute(root)
        self.dataset_dir = str(self.root)
        if cfg.DATASET.SUBSAMPLE_CLASSES != "all":
            raise ValueError(
                f"DATASET.SUBSAMPLE_CLASSES '{cfg.DATASET.SUBSAMPLE_CLASSES}' is for labelled benchmarks: an ImageFolder takes "
                "'all'. Give other class names in DATASET.CLASSNAMES instead."
            )
        self.names = read_class_names(cfg.DATASET.CLASSNAMES) if cfg.DATASET.CLASSNAMES else []
        refuse_doubles(self.names, f"DATASET.CLASSNAMES '{cfg.DATASET.CLASSNAMES}'")
        if not self.names and not (is_distilled(cfg.TRAINER.NAME) and cfg.TRAINER.KDPL.CLASS_AGNOSTIC):
            raise ValueError(
                f"{cfg.TRAINER.NAME or 'The trainer'} needs class names: set DATASET.CLASSNAMES to a text file with a name in "
                "each line, or train without names by a KDPL trainer with TRAINER.KDPL.CLASS_AGNOSTIC True."
            )
        if cfg.DATASET.IMAGE_LIST:
            splits, bad = {**{name: [] for name in LABELLED}, "train": read_list(cfg.DATASET.IMAGE_LIST, self.root)}, {}
        else:
            splits, bad = self._listed(root)
        self._leave_out_unreadable(splits, bad, cfg)
        evaluated = {name: self._labelled(name, splits[name]) for name in LABELLED}
        train = self._training_images(splits["train"], cfg)
        self.has_train, self.has_test = bool(train), bool(evaluated["test"])
        if not train and not self.has_test:
            raise FileNotFoundError(f"DATASET.ROOT '{root}' has no image to train on or to test that can be read.")
        # Dassl needs both lists: the other one stands in for a missing one, and `FolderManager` does not use it.
        test = evaluated["test"] or train
        super().__init__(dict(enumerate(self.names)), train_x=train or test, val=evaluated["val"] or None, test=test)

    def _listed(self, root: str) -> tuple[dict[str, list[Path]], dict[Path, str]]:
        """Return the images below the root by split, and the unreadable entries with the reasons."""
        listing = list_images(self.root)
        if not listing.images:
            others = listing.others.total() + len(listing.unreadable)
            raise FileNotFoundError(f"DATASET.ROOT '{root}' has no image at any depth (other files: {others:,}).")
        if listing.others and distributed.is_main():
            print(f"Files in {self.root} that are hidden or not images, left out: {listing.others.total():,}")
        splits: dict[str, list[Path]] = {**{name: [] for name in LABELLED}, "train": []}
        for path in listing.images:
            top = path.relative_to(self.root).parts[0]
            splits[top if top in LABELLED else "train"].append(path)
        return splits, listing.unreadable

    def _leave_out_unreadable(self, splits: dict[str, list[Path]], bad: dict[Path, str], cfg: CfgNode) -> None:
        """Remove unreadable images: those to train on by their headers, those to test on by all they hold."""
        for name, paths in splits.items():
            bad = {**bad, **unreadable(paths, name in LABELLED)}
        if not bad:
            return
        if cfg.DATASET.ON_BAD_IMAGE == "error":
            first = [*list(bad.values())[:SHOWN], *(["..."] if len(bad) > SHOWN else [])]
            about = f"Unreadable images in {self.root}: {len(bad):,}"
            raise BadImageError("\n".join([about, *first, "Remove them, or set DATASET.ON_BAD_IMAGE to 'skip'."]))
        for name, paths in splits.items():
            splits[name] = [path for path in paths if path not in bad]
        if distributed.is_main():
            print(f"Unreadable images, left out: {len(bad):,}", *bad.values(), sep="\n")

    def _labelled(self, split: str, paths: Sequence[Path]) -> list[Datum]:
        """Return the images of a labelled folder, class by class in the order of the names."""
        datums = []
        for path in paths:
            folder, *inside = path.relative_to(self.root / split).parts
            if not inside:
                raise ValueError(f"'{path}' has no class: put it into a subfolder of '{split}' named like its class.")
            label = self._label(folder)
            if label is None:
                raise ValueError(
                    f"The folder '{self.root / split / folder}' is not named like one of the {len(self.names)} class names "
                    f"(DATASET.CLASSNAMES).{did_you_mean(folder.replace('_', ' '), self.names)}"
                )
            datums.append(_datum(path, label, self.names[label]))
        return sorted(datums, key=lambda datum: datum.label)

    def _training_images(self, paths: Sequence[Path], cfg: CfgNode) -> list[Datum]:
        shots = cfg.DATASET.NUM_SHOTS
        if is_distilled(cfg.TRAINER.NAME) or cfg.TRAINER.NAME.startswith("Zeroshot"):  # no label is within reach
            if shots > 0 and not self.names:
                raise ValueError(
                    f"DATASET.NUM_SHOTS {shots} counts images for each class, and no class names are known: set it to 0 for "
                    "all images, or give DATASET.CLASSNAMES."
                )
            name = self.names[0] if self.names else ""
            datums = [_datum(path, 0, name) for path in paths]
            self.drawn_from = datums if shots > 0 else []
            return draw_images(datums, shots * len(self.names), cfg.SEED)
        datums = []
        for path in paths:
            folders = reversed(path.relative_to(self.root).parts[:-1])
            label = next((label for folder in folders if (label := self._label(folder)) is not None), None)
            if label is None:
                raise ValueError(
                    f"'{path}' has no label, and the trainer {cfg.TRAINER.NAME} learns from labels: put it into a folder named "
                    f"like its class, or choose KDPL_{cfg.TRAINER.NAME}, which needs none."
                )
            datums.append(_datum(path, label, self.names[label]))
        return fewshot(self, datums, [], shots, cfg.SEED)[0]

    def _label(self, folder: str) -> int | None:
        """Return the label of a folder named like a class, exactly or up to case and the sign for a space."""
        if folder in self.names:
            return self.names.index(folder)
        similar = [label for label, name in enumerate(self.names) if _plain(name) == _plain(folder)]
        return similar[0] if len(similar) == 1 else None


def _datum(path: Path, label: int, name: str) -> Datum:
    """Return an image as Dassl has it; Dassl asks for a file, which a photo in a shard is not."""
    if not sources.is_inside(path):
        return Datum(str(path), label, classname=name)
    datum = Datum(__file__, label, classname=name)
    object.__setattr__(datum, "_impath" if hasattr(datum, "_impath") else "impath", str(path))
    return datum


def read_list(path: str | os.PathLike, root: Path) -> list[Path]:
    """Return the images of a JSON list of paths relative to a folder."""
    try:
        return [root / name for name in json.loads(Path(path).read_text(encoding="utf-8"))]
    except (ValueError, TypeError) as error:
        raise ValueError(f"DATASET.IMAGE_LIST '{path}' is not a JSON list of paths below DATASET.ROOT: {error}.") from None


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").replace("/", " ").split()).casefold()
