"""Names that configuration keys take, and the error for what they do not take."""

from collections.abc import Iterable

from kdpl.common.messages import did_you_mean
from kdpl.config.keys import choices

PRECISIONS = choices("TRAINER.*.PREC")
CLASS_TOKEN_POSITIONS = choices("TRAINER.*.CLASS_TOKEN_POSITION")
LOSSES = choices("TRAINER.KDPL.LOSS")
ALLOWED = choices("TRAINER.KDPL.ALLOW")
SUBSAMPLES = choices("DATASET.SUBSAMPLE_CLASSES")
INTERPOLATIONS = choices("INPUT.INTERPOLATION")
OPTIMIZERS = choices("OPTIM.NAME")
SAMPLERS = choices("DATALOADER.TRAIN_X.SAMPLER")
SPLITS = choices("TEST.SPLIT")
FINAL_MODELS = choices("TEST.FINAL_MODEL")


def is_distilled(trainer: str) -> bool:
    """Return whether the trainer of this name learns from a teacher without labels."""
    return trainer.startswith("KDPL_")


class ConfigError(ValueError):
    """A configuration has an unknown key or an invalid value."""


def check_choice(key: str, value: str, names: Iterable[str]) -> None:
    """Raise a ConfigError with the key, its value, the names that it takes and the closest of them, unless `value` is one."""
    if value not in names:
        raise ConfigError(f"{key} '{value}' is not one of {', '.join(names)}.{did_you_mean(value, names)}")
