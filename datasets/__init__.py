"""The data sets, registered in Dassl's DATASET_REGISTRY when this package is imported.

A name that is registered already, by a fork that brings its own data sets, is left to it; one that the fork registers later
becomes the fork's, with a line that says to import this after them.
"""

from dassl.data.datasets import DATASET_REGISTRY
from dassl.utils import Registry

from kdpl.config.registries import let_forks_win
from kdpl.datasets import emoji_scenes, image_folder
from kdpl.datasets.coop import DATASETS, dataset_dir_check

__all__ = ["dataset_dir_check", "emoji_scenes", "image_folder", "register"]


def register(registry: Registry) -> None:
    """Register the data sets of the CoOp family whose names are still free."""
    taken = set(registry.registered_names())
    for name, dataset in DATASETS.items():
        if name not in taken:
            registry.register(dataset)


register(DATASET_REGISTRY)
let_forks_win(DATASET_REGISTRY, "kdpl.datasets", "import kdpl.datasets after the fork's own data sets")
