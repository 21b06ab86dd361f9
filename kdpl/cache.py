"""Fill the feature cache of a training set's views, as a separate job.

    python -m kdpl.cache --trainer KDPL_CoOp ... TRAINER.KDPL.VIEWS 8 TRAINER.KDPL.CACHE_DIR views
    torchrun --nproc-per-node 8 -m kdpl.cache ...

The flags are those of train.py. Every view of every training image is encoded once by the teacher, and by the student's
image tower if that is frozen; the features are stored in TRAINER.KDPL.CACHE_DIR, from where later runs of all learners, seeds
and shots read them. Stored features are not computed again: the same command resumes a stopped job.
"""

import sys

from tqdm import tqdm

from kdpl import train
from kdpl.common import distributed, exits
from kdpl.common.command import run_command
from kdpl.config.keys import ConfigError, is_distilled


def fill(trainer) -> tuple[int, int]:
    """Compute and store the missing features of a KDPL trainer's views, whose images several ranks share.

    Returns:
        The number of features that were missing, and of all features.

    Raises:
        FloatingPointError: a feature is not finite.
        OSError: the features could not be written.
    """
    loader, features = trainer.train_loader_x, trainer.view_features
    size = loader.loader.batch_size
    missing, total = sum(f.unknown for f in features), sum(f.known.numel() for f in features)
    loader.wanted = lambda index, view: sum(f.missing(index, view) for f in features).bool()
    for f in features:
        f.chunk = size  # as in a training with one process
    with tqdm(total=missing, unit="feature", disable=None if distributed.is_main() else True) as progress:
        for view in range(loader.views):
            loader.epoch = view
            for batch in loader.all_wanted(size * distributed.world()):
                trainer.features(batch)
                progress.update(missing - sum(f.unknown for f in features) - progress.n)
            for f in features:
                f.save()
    if left := sum(f.unknown for f in features):
        raise FloatingPointError(f"{left:,} of {total:,} features are NaN or infinite: set TRAINER.KDPL.PREC fp32.")
    lost = [str(f.store.path) for f in features if distributed.is_main() and not f.store.writable]
    if distributed.any_rank(bool(lost)):
        raise OSError(f"The features could not be stored in {', '.join(lost)}: see above. Make room, and start again.")
    return missing, total


def main(argv: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = train.parse_args(argv, __doc__.splitlines()[0])
    try:
        cfg, _ = train.configurations(args)
        views, folder = cfg.TRAINER.KDPL.VIEWS, cfg.TRAINER.KDPL.CACHE_DIR
        if not is_distilled(cfg.TRAINER.NAME) or views < 1 or not folder:
            raise ConfigError(
                f"There is nothing to cache: expected a trainer of KDPL (--trainer; '{cfg.TRAINER.NAME}' here), "
                f"TRAINER.KDPL.VIEWS of 1 or more ({views}), and a folder as TRAINER.KDPL.CACHE_DIR ('{folder}')."
            )
        from dassl.engine import build_trainer

        from kdpl.trainers import run

        run.check_names(cfg)
        distributed.start(cfg.USE_CUDA)
        trainer = build_trainer(cfg)
        trainer.load_for_training()
    except (ValueError, OSError, KeyError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    try:
        missing, total = fill(trainer)
    except (FloatingPointError, ValueError, OSError) as error:
        return exits.report(error, exits.DIVERGED if isinstance(error, FloatingPointError) else exits.FAILED)
    print(f"{folder} has all {total:,} features of {views} views; {missing:,} were missing")
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
