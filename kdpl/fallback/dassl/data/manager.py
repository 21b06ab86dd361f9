"""The loaders of all splits, from the configuration.

A loader of training images draws their order and their augmentation from the global generators. The trainers iterate over it
through `kdpl.training.batches.EpochLoader`, which makes both a function of the run's seed and the epoch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from PIL import Image
from tabulate import tabulate
from torch.utils.data import DataLoader, Dataset, RandomSampler, SequentialSampler
from yacs.config import CfgNode

from dassl.data.datasets import Datum, build_dataset
from dassl.data.transforms import build_transform
from kdpl.config.keys import check_choice
from kdpl.training.batches import read_image

Transform = Callable[[Image.Image], Any]
SAMPLERS = {"RandomSampler": RandomSampler, "SequentialSampler": SequentialSampler}


class DatasetWrapper(Dataset):
    """The images of a split, each a dictionary of `img`, `label`, `domain`, `impath` and `index`."""

    def __init__(self, cfg: CfgNode, data_source: Sequence[Datum], transform: Transform, is_train: bool = False):
        self.cfg, self.data_source, self.transform, self.is_train = cfg, data_source, transform, is_train

    def __len__(self) -> int:
        return len(self.data_source)

    def __getitem__(self, idx: int) -> dict[str, Any]:
        item = self.data_source[idx]
        image = self.transform(read_image(item.impath))
        return {"img": image, "label": item.label, "domain": item.domain, "impath": item.impath, "index": int(idx)}


class DataManager:
    """The data set that DATASET.NAME names, and a loader for each of its splits; None for a split that it does not have.

    Args:
        cfg: the whole configuration.
        dataset_wrapper: a class in place of `DatasetWrapper`, called with the same arguments.
    """

    def __init__(self, cfg: CfgNode, dataset_wrapper: Callable[..., Dataset] | None = None):
        self.dataset = dataset = build_dataset(cfg)
        loaders = cfg.DATALOADER
        wrapper = dataset_wrapper or DatasetWrapper
        train = partial(build_data_loader, cfg, wrapper, build_transform(cfg, is_train=True), True)
        test = partial(build_data_loader, cfg, wrapper, build_transform(cfg, is_train=False), False)
        self.train_loader_x = train(dataset.train_x, loaders.TRAIN_X)
        self.train_loader_u = None  # only trainers of Dassl itself read it
        self.val_loader = test(dataset.val, loaders.TEST) if dataset.val else None
        self.test_loader = test(dataset.test, loaders.TEST)

        self.num_classes: int = dataset.num_classes
        self.lab2cname: dict[int, str] = dataset.lab2cname
        self.num_source_domains = len(cfg.DATASET.SOURCE_DOMAINS)
        if cfg.VERBOSE:
            self.show_dataset_summary(cfg)

    def show_dataset_summary(self, cfg: CfgNode) -> None:
        """Print a table of the data set's domains, classes and split sizes."""
        table = [["Dataset", cfg.DATASET.NAME]]
        domains = {"Source": cfg.DATASET.SOURCE_DOMAINS, "Target": cfg.DATASET.TARGET_DOMAINS}
        table += [[name, ", ".join(some)] for name, some in domains.items() if some]
        table.append(["# classes", f"{self.num_classes:,}"])
        for split in ("train_x", "train_u", "val", "test"):
            if images := getattr(self.dataset, split):
                table.append([f"# {split}", f"{len(images):,}"])
        print(tabulate(table, disable_numparse=True))


def build_data_loader(
    cfg: CfgNode,
    wrapper: Callable[..., Dataset],
    transform: Transform,
    is_train: bool,
    data_source: Sequence[Datum] | None,
    node: CfgNode,
) -> DataLoader:
    """Return a loader over `data_source`, with SAMPLER and BATCH_SIZE of a node; in training a last short batch is dropped.

    Raises:
        ValueError: there are no images, or the sampler is unknown or only Dassl has it.
    """
    if not data_source:
        split = "training" if is_train else "test or validation"
        raise ValueError(f"Data set '{cfg.DATASET.NAME}' has no {split} images. Check DATASET.ROOT and the split.")
    check_choice("SAMPLER of the engine in use where no Dassl is installed", node.SAMPLER, SAMPLERS)
    return DataLoader(
        wrapper(cfg, data_source, transform=transform, is_train=is_train),
        batch_size=node.BATCH_SIZE,
        sampler=SAMPLERS[node.SAMPLER](data_source),
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        drop_last=is_train and len(data_source) >= node.BATCH_SIZE,
        pin_memory=torch.cuda.is_available() and cfg.USE_CUDA,
    )
