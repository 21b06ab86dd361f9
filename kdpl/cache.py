"""Fill the feature cache of a training set's views, as a separate job.

    python -m kdpl.cache --trainer KDPL_CoOp ... TRAINER.KDPL.VIEWS 8 TRAINER.KDPL.CACHE_DIR views
    torchrun --nproc-per-node 8 -m kdpl.cache ...

The flags are those of train.py. Every view of every training image is encoded once by the teacher, and by the student's
image tower if that is frozen; the features are stored in TRAINER.KDPL.CACHE_DIR, from where later runs of all learners, seeds
and shots read them. Stored features are not computed again: the same command resumes a stopped job.
"""

import sys

from tqdm import tqdm
from yacs.config import CfgNode

from kdpl import train
from kdpl.common import distributed, exits
from kdpl.common.command import run_command
from kdpl.config.keys import ConfigError, is_distilled


def check(cfg: CfgNode) -> None:
    """Refuse a configuration without anything to cache.

    Raises:
        ConfigError: the trainer has no teacher, or TRAINER.KDPL.VIEWS or CACHE_DIR is not set.
    """
    name, options = cfg.TRAINER.NAME, cfg.TRAINER.KDPL
    if not is_distilled(name):
        raise ConfigError(f"TRAINER.NAME (--trainer) '{name}' has no teacher: expected one of KDPL, such as KDPL_CoOp.")
    if options.VIEWS < 1:
        raise ConfigError(f"TRAINER.KDPL.VIEWS is {options.VIEWS}, expected the number of views per image, 1 or more.")
    if not options.CACHE_DIR:
        raise ConfigError("TRAINER.KDPL.CACHE_DIR is not set, expected the folder for the features.")


def fill(trainer) -> tuple[int, int]:
    """Compute and store the missing features of a KDPL trainer's views; several ranks share the images.

    Args:
        trainer: a `DistillTrainer` with views, after `load_for_training`.

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
            for batch in loader.wanted_of(range(len(loader.dataset)), size * distributed.world()):
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
        import kdpl.datasets
        import kdpl.trainers
        from kdpl.trainers import run

        kdpl.trainers.load_learners(args.learner)
        cfg = train.build_cfg(args, args.dataset_config_file)
        check(cfg)
        run.check_names(cfg)

        from dassl.engine import build_trainer
        from dassl.utils import set_random_seed

        distributed.start(cfg.USE_CUDA)
        if cfg.SEED >= 0:
            set_random_seed(cfg.SEED)
        trainer = build_trainer(cfg)
        if trainer.train_loader_x is None:
            raise ConfigError(f"DATASET.NAME '{cfg.DATASET.NAME}' has no training images.")
        trainer.load_for_training()
    except (ValueError, OSError, KeyError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)
    try:
        missing, total = fill(trainer)
    except FloatingPointError as error:
        return exits.report(error, exits.DIVERGED)
    except (ValueError, OSError) as error:
        return exits.report(error, exits.FAILED)
    print(
        f"{cfg.TRAINER.KDPL.CACHE_DIR} has all {total:,} features of {cfg.TRAINER.KDPL.VIEWS} views; {missing:,} were missing"
    )
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
