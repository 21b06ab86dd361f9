"""The registry of data sets."""

from yacs.config import CfgNode

from dassl.utils import Registry
from dassl.utils.registry import check_choice

DATASET_REGISTRY = Registry("DATASET")


def build_dataset(cfg: CfgNode):
    """Return the data set that DATASET.NAME names, built from `cfg`.

    Raises:
        ValueError: no data set of that name is registered.
    """
    check_choice("DATASET.NAME", cfg.DATASET.NAME, DATASET_REGISTRY.registered_names())
    if cfg.VERBOSE:
        print(f"Loading dataset: {cfg.DATASET.NAME}")
    return DATASET_REGISTRY.get(cfg.DATASET.NAME)(cfg)
