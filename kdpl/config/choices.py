"""The allowed values of configuration keys, each list defined once."""

from collections.abc import Iterable

from kdpl.common.messages import did_you_mean

PRECISIONS = ("fp16", "fp32", "amp", "bf16")
LOSSES = ("symmetric", "forward", "reverse")
CLASS_TOKEN_POSITIONS = ("end", "middle", "front")
SHOTS = ("class", "random")
SUBSAMPLES = ("all", "base", "new")
ON_BAD_IMAGE = ("skip", "error")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
OPTIMIZERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")
SAMPLERS = ("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")
SPLITS = ("test", "val")
ALLOWED = ("hard_labels", "label_smoothing", "lookups", "own_targets", "validation")  # words of TRAINER.KDPL.ALLOW
FINAL_MODELS = ("last_step", "best_val")


def is_distilled(trainer: str) -> bool:
    """Return whether the trainer of this name learns from a teacher without labels."""
    return trainer.startswith("KDPL_")


class ConfigError(ValueError):
    """A configuration has an unknown key or an invalid value."""


def check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    """Raise a ConfigError with the key, its value, the choices and the closest of them, unless `value` is a choice."""
    if value not in choices:
        raise ConfigError(f"{key} '{value}' is not one of {', '.join(choices)}.{did_you_mean(value, choices)}")
