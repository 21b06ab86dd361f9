"""What a run would record of its data: class names, and digests of images, without a trainer."""

from collections.abc import Mapping
from functools import cache, lru_cache
from threading import Lock
from typing import Any

from dassl.data.datasets import DatasetBase, build_dataset
from dassl.utils import set_random_seed
from yacs.config import CfgNode

from kdpl.config.keys import is_distilled
from kdpl.distill.views import image_files, images_digest, pool_facts

_ONE_AT_A_TIME = Lock()  # a draw takes Python's own `random`, and sweeps look at several runs in threads


def data_facts(cfg: CfgNode, split: str) -> Mapping[str, Any]:
    """Return what a run with this configuration would record now of the images of a split; a process reads them once.

    Args:
        split: "train": what the manifest says of training data; "test" or "val": the digest `images` of a result.

    Raises:
        OSError, ValueError, KeyError: the data set is not there, or cannot be read.
    """
    with _ONE_AT_A_TIME:
        return dict(_facts(cfg.dump(), split))


@cache
def _facts(config: str, split: str) -> Mapping[str, Any]:
    cfg, dataset = CfgNode.load_cfg(config), _dataset(config)
    root = cfg.DATASET.ROOT or getattr(dataset, "dataset_dir", "")

    def digest(items: list | None, labelled: bool = True) -> str:
        return images_digest(items, image_files([item.impath for item in items], root), labelled) if items else ""

    if split != "train":
        return {"images": digest(getattr(dataset, split))}
    if cfg.TRAINER.NAME.startswith("Zeroshot") or not getattr(dataset, "has_train", True):
        return {}
    names = [dataset.lab2cname[label] for label in sorted(dataset.lab2cname)]
    trained = digest(dataset.train_x, not is_distilled(cfg.TRAINER.NAME))
    return {"class names": names, "training images": trained, **pool_facts(dataset, root)}


@lru_cache(maxsize=4)
def _dataset(config: str) -> DatasetBase:
    cfg = CfgNode.load_cfg(config)
    cfg.VERBOSE = False
    if cfg.SEED >= 0:
        set_random_seed(cfg.SEED)
    return build_dataset(cfg)
