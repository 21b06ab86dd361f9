"""Fill the cache of a data set's views: `python -m kdpl.cache`, with the flags of train.py, or on many ranks `torchrun -m kdpl.cache`.

Every view of every training image is run through the teacher and the frozen student once, and kept under
TRAINER.KDPL.CACHE_DIR, where later runs of all variants and seeds find it. What is there already is not computed again, so
that a job that was stopped goes on with the same command.
"""

import argparse
import sys
from collections.abc import Sequence

from kdpl import exits


def fill(trainer) -> tuple[int, int]:
    """Compute and keep what is missing of a KDPL trainer's views; several ranks share the images.

    Returns:
        How many features were missing when this rank began, and how many features there are.
    """
    import torch
    from tqdm import tqdm

    from kdpl import distributed

    loader, features = trainer.train_loader_x, trainer.view_features
    missing = sum(int((~f.table.known).sum()) for f in features)
    total = sum(f.table.known.numel() for f in features)
    loader.wanted = lambda index, view: sum(f.missing(index, view) for f in features).bool()
    for f in features:
        f.table.writable = True  # every rank keeps what it has computed, in a shard of its own
    own = torch.arange(len(loader.dataset))[distributed.rank() :: distributed.world()]
    for epoch in tqdm(range(loader.views), desc="views", disable=None if distributed.is_main() else True):
        loader.epoch = epoch
        for batch in loader.missing(own):
            trainer.features(batch)
        for f in features:
            f.table.sync()
    distributed.barrier()
    return missing, total


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m kdpl.cache", description=__doc__.split("\n\n")[1], add_help=False)
    parser.parse_known_args(argv)
    return exits.FAILED


if __name__ == "__main__":
    sys.exit(main())
