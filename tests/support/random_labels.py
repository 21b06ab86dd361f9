"""The same trainers on a data set whose training images have random labels, and a command line that trains one of them.

    python tests/support/random_labels.py --trainer KDPL_CoOp ...

The labels are changed in the data set, before any loader reads them: every batch of the training holds them.
"""

import random
import sys

import kdpl.datasets  # first: it makes `dassl` importable
import kdpl.trainers.baselines  # noqa: F401

# isort: split
from dassl.data.datasets import Datum
from dassl.engine import TRAINER_REGISTRY


def register_with_random_labels(trainer: str, name: str) -> None:
    """Register under `name` a trainer that trains on random labels; the order of images and their augmentation stay."""

    class RandomLabels(TRAINER_REGISTRY.get(trainer)):
        def build_data_loader(self):
            super().build_data_loader()
            numbers, dataset = random.Random(0), self.train_loader_x.dataset
            dataset.data_source = [
                Datum(item.impath, numbers.randrange(self.num_classes), item.domain, item.classname)
                for item in dataset.data_source
            ]

    RandomLabels.__name__ = name
    TRAINER_REGISTRY.register(force=True)(RandomLabels)


if __name__ == "__main__":
    from kdpl.train import main

    trainer = sys.argv[sys.argv.index("--trainer") + 1]
    register_with_random_labels(trainer, trainer)
    sys.exit(main())
