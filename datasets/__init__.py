"""The data sets, registered in Dassl's DATASET_REGISTRY when this package is imported.

A name that is registered already, by a fork that brings its own data sets, is left to it: import this after them.
"""

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Registry

from kdpl.datasets.coop.catalog import DATASETS, dataset_dir_check
from kdpl.datasets.emoji.scenes import DATASETS as EMOJI_DATASETS
from kdpl.datasets.image_folder import ImageFolder

__all__ = ["dataset_dir_check", "register"]


def register(registry: Registry) -> None:
    """Register all data sets whose names are still free."""
    taken = set(registry.registered_names())
    for dataset in (*DATASETS.values(), *EMOJI_DATASETS.values(), ImageFolder):
        if dataset.__name__ not in taken:
            registry.register(dataset)


register(DATASET_REGISTRY)
