"""All configuration keys: default, influence on the learned prompts, documentation and values. Writes docs/configuration.md."""

import math
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

from kdpl.common.messages import did_you_mean


class ConfigError(ValueError):
    """A configuration has an unknown key or an invalid value."""


class Range(NamedTuple):
    """What a key takes."""

    words: str  # in messages and in the documentation
    fits: Callable[[Any], bool]


class Key(NamedTuple):
    """What is known of a key."""

    default: Any  # None for an option of prompt learners, which have their own
    influence: str  # what another value does to the learned prompts
    text: str
    values: tuple[str, ...] | Range | None = None  # the names that it takes, or a range; None: any value of the default's type
    file: bool = False  # if it names a file or a folder, its content is compared and the path is not
    follows: bool = False  # a trainer sets it to what the student needs, unless it is given


MATTERS, ROUNDS, HARMLESS = "matters", "rounds", "harmless"


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_logit_scale(value: str) -> bool:
    try:
        return value in ("student", "own") or 0 < float(value) < math.inf
    except ValueError:
        return False


ABOVE_0 = Range("a number above 0", lambda v: 0 < v < math.inf)
FROM_0 = Range("0 or more", lambda v: v >= 0)
FROM_1 = Range("1 or more", lambda v: v >= 1)
FROM_2 = Range("at least 2 names a batch", lambda v: v >= 2)
FROM_MINUS_1 = Range("images per class, or -1 for all", lambda v: v >= -1)
BELOW_1 = Range("0 or more and below 1", lambda v: 0 <= v < 1)
SHARE = Range("0 to 1", lambda v: 0 <= v <= 1)
SHARES = Range("two numbers, 0 to 1", lambda v: len(v) == 2 and all(map(_finite, v)) and 0 < v[0] <= v[1] <= 1)
ONE_VIEW = Range("1: a prompt trainer takes one view of an image", lambda v: v == 1)
SEEDS = Range("below 2**32, or -1 for a random one", lambda v: v < 2**32)
SIZE = Range("two whole numbers above 0", lambda v: len(v) == 2 and all(type(x) is int and x > 0 for x in v))
RGB = Range("one number for R, G and B", lambda v: len(v) == 3 and all(map(_finite, v)))
RGB_ABOVE_0 = Range("one number for R, G and B, all above 0", lambda v: len(v) == 3 and all(_finite(x) and x > 0 for x in v))
LOGIT_SCALE = Range("`student`, `own` or a number above 0", _is_logit_scale)
DEPTH = Range("1 to the tower's layers", lambda v: v >= 1)  # the student compares it with its towers

PRECISIONS = ("fp16", "fp32", "amp", "bf16")
SAMPLERS = ("RandomSampler", "SequentialSampler", "RandomDomainSampler", "SeqDomainSampler", "RandomClassSampler")
OPTIMIZERS = ("adam", "amsgrad", "sgd", "rmsprop", "radam", "adamw")
INTERPOLATIONS = ("bilinear", "bicubic", "nearest")
SUBSAMPLES = ("all", "base", "new")
SPLITS = ("test", "val")
LABELS = ("own", "teacher")
BY_TEACHER = " by the teacher"  # after the split of a result that is agreement with the teacher, never an accuracy
FINAL_MODELS = ("last_step", "best_val")
LOSSES = ("symmetric", "forward", "reverse", "dkd", "argmax")
CLASS_TOKEN_POSITIONS = ("end", "middle", "front")
SCHEDULES = ("single_step", "multi_step", "cosine")
WARMUPS = ("constant", "linear")

# Keys of Dassl.
ENGINE = {
    "OUTPUT_DIR": Key("./output", HARMLESS, "Folder of the run (`--output-dir`)."),
    "RESUME": Key("", HARMLESS, "Folder of another run to resume from (`--resume`); empty is `OUTPUT_DIR`."),
    "SEED": Key(-1, MATTERS, "Seed of all random choices (`--seed`); below 0 draws one, which is recorded.", SEEDS),
    "USE_CUDA": Key(True, ROUNDS, "Use a GPU if there is one."),
    "VERBOSE": Key(True, HARMLESS, "Print the data set's sizes at the start."),
    "INPUT.SIZE": Key((224, 224), MATTERS, "Height and width of the images.", SIZE, follows=True),
    "INPUT.INTERPOLATION": Key("bilinear", MATTERS, "How images are resized.", INTERPOLATIONS, follows=True),
    "INPUT.TRANSFORMS": Key((), MATTERS, "Augmentation (`--transforms`); `normalize` is required."),
    "INPUT.NO_TRANSFORM": Key(False, MATTERS, "Refused, since CLIP takes normalised images."),
    "INPUT.PIXEL_MEAN": Key([0.485, 0.456, 0.406], MATTERS, "Mean of each channel, for `normalize`.", RGB, follows=True),
    "INPUT.PIXEL_STD": Key([0.229, 0.224, 0.225], MATTERS, "Deviation of each channel.", RGB_ABOVE_0, follows=True),
    "INPUT.RRCROP_SCALE": Key((0.08, 1.0), MATTERS, "Shares of the area, for `random_resized_crop`.", SHARES),
    "DATASET.ROOT": Key("", HARMLESS, "Folder of the data sets (`--root`)."),
    "DATASET.NAME": Key("", MATTERS, "The data set ([data sets](datasets.md))."),
    "DATASET.SOURCE_DOMAINS": Key((), MATTERS, "Domains to train on; empty is all (`--source-domains`)."),
    "DATASET.TARGET_DOMAINS": Key((), HARMLESS, "Domains to test on; empty is all (`--target-domains`)."),
    "DATASET.NUM_SHOTS": Key(-1, MATTERS, "Training images of each class, drawn by the seed; -1 is all.", FROM_MINUS_1),
    "DATALOADER.NUM_WORKERS": Key(4, HARMLESS, "Processes that read images; 0 is the main process.", FROM_0),
    "DATALOADER.K_TRANSFORMS": Key(1, MATTERS, "Augmented views of an image in one step.", ONE_VIEW),
    "DATALOADER.TRAIN_X.SAMPLER": Key("RandomSampler", MATTERS, "Order of the training images.", SAMPLERS),
    "DATALOADER.TRAIN_X.BATCH_SIZE": Key(32, MATTERS, "Images of a training step, over all processes.", FROM_1),
    "DATALOADER.TEST.SAMPLER": Key("SequentialSampler", HARMLESS, "Order of the test images.", SAMPLERS),
    "DATALOADER.TEST.BATCH_SIZE": Key(32, HARMLESS, "Images of a step of an evaluation.", FROM_1),
    "MODEL.INIT_WEIGHTS": Key("", HARMLESS, "A checkpoint of prompts to start from."),
    "MODEL.BACKBONE.NAME": Key("", MATTERS, "The student CLIP (`--backbone`, [models](models.md)).", file=True),
    "OPTIM.NAME": Key("adam", MATTERS, "The optimizer.", OPTIMIZERS),
    "OPTIM.LR": Key(0.0003, MATTERS, "Learning rate.", ABOVE_0),
    "OPTIM.WEIGHT_DECAY": Key(0.0005, MATTERS, "Weight decay.", FROM_0),
    "OPTIM.MOMENTUM": Key(0.9, MATTERS, "Of `sgd` and `rmsprop`.", BELOW_1),
    "OPTIM.SGD_DAMPNING": Key(0, MATTERS, "Dampening of `sgd`."),
    "OPTIM.SGD_NESTEROV": Key(False, MATTERS, "Nesterov momentum of `sgd`."),
    "OPTIM.RMSPROP_ALPHA": Key(0.99, MATTERS, "Smoothing of `rmsprop`.", SHARE),
    "OPTIM.ADAM_BETA1": Key(0.9, MATTERS, "First moment of `adam`, `amsgrad`, `adamw` and `radam`.", BELOW_1),
    "OPTIM.ADAM_BETA2": Key(0.999, MATTERS, "Their second moment.", BELOW_1),
    "OPTIM.STAGED_LR": Key(False, MATTERS, "With an installed Dassl: rates by module, see the next two keys."),
    "OPTIM.LR_SCHEDULER": Key("single_step", MATTERS, "The schedule of the learning rate, set after each epoch.", SCHEDULES),
    "OPTIM.STEPSIZE": Key((-1,), MATTERS, "Epochs between steps, or at which a step is (`multi_step`); -1 is `MAX_EPOCH`."),
    "OPTIM.GAMMA": Key(0.1, MATTERS, "Factor of a step.", ABOVE_0),
    "OPTIM.MAX_EPOCH": Key(10, MATTERS, "Epochs of the training.", FROM_1),
    "OPTIM.WARMUP_EPOCH": Key(-1, MATTERS, "Epochs of the warm-up; -1 is none."),
    "OPTIM.WARMUP_TYPE": Key("linear", MATTERS, "The warm-up's learning rate.", WARMUPS),
    "OPTIM.WARMUP_CONS_LR": Key(1e-05, MATTERS, "Learning rate of a `constant` warm-up.", ABOVE_0),
    "OPTIM.WARMUP_MIN_LR": Key(1e-05, MATTERS, "Learning rate of the first epoch of a `linear` warm-up.", FROM_0),
    "OPTIM.WARMUP_RECOUNT": Key(True, MATTERS, "The schedule counts epochs from the end of the warm-up."),
    "TRAIN.CHECKPOINT_FREQ": Key(0, HARMLESS, "Epochs between checkpoints; 0 is after the last one only."),
    "TRAIN.PRINT_FREQ": Key(10, HARMLESS, "Steps between lines of the log.", FROM_1),
    "TEST.EVALUATOR": Key("Classification", HARMLESS, "The evaluator, by its name in Dassl's registry."),
    "TEST.NO_TEST": Key(False, HARMLESS, "Do not test after the training."),
    "TEST.SPLIT": Key("test", HARMLESS, "Images to test on.", SPLITS),
    "TEST.FINAL_MODEL": Key("last_step", MATTERS, "Prompts of the last epoch, or of the best in validation.", FINAL_MODELS),
    "TRAINER.NAME": Key("", MATTERS, "The trainer (`--trainer`, [trainers](training.md#trainers))."),
}
# Keys of Dassl that only an installed Dassl reads, by group, with their defaults.
_UNREAD: dict[str, dict[str, Any]] = {
    "": {"VERSION": 1},
    "INPUT.": {"CROP_PADDING": 4, "CUTOUT_N": 1, "CUTOUT_LEN": 16, "GN_MEAN": 0.0, "GN_STD": 0.15, "RANDAUGMENT_N": 2,
        "RANDAUGMENT_M": 10, "COLORJITTER_B": 0.4, "COLORJITTER_C": 0.4, "COLORJITTER_S": 0.4, "COLORJITTER_H": 0.1,
        "RGS_P": 0.2, "GB_P": 0.5, "GB_K": 21},
    "DATASET.": {"NUM_LABELED": -1, "VAL_PERCENT": 0.1, "STL10_FOLD": -1, "CIFAR_C_TYPE": "", "CIFAR_C_LEVEL": 1,
        "ALL_AS_UNLABELED": False},
    "DATALOADER.": {"RETURN_IMG0": False},
    "DATALOADER.TRAIN_X.": {"N_DOMAIN": 0, "N_INS": 16},
    "DATALOADER.TRAIN_U.": {"SAME_AS_X": True, "SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16},
    "MODEL.BACKBONE.": {"PRETRAINED": True},
    "MODEL.HEAD.": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
    "OPTIM.": {"NEW_LAYERS": (), "BASE_LR_MULT": 0.1},
    "TRAIN.": {"COUNT_ITER": "train_x"},
    "TEST.": {"PER_CLASS_RESULT": False, "COMPUTE_CMAT": False},
}  # fmt: skip
UNREAD = {f"{group}{name}": value for group, values in _UNREAD.items() for name, value in values.items()}
# Keys of KDPL.
OWN = {
    "DATASET.SUBSAMPLE_CLASSES": Key("all", MATTERS, "`base`: the first half of the classes, `new`: the rest.", SUBSAMPLES),
    "DATASET.TEMPLATE": Key("", MATTERS, "The sentence with `{}` for the class name; empty is the data set's own."),
    "DATASET.CLASSNAMES": Key("", HARMLESS, "For `ImageFolder`, a file of class names, one per line."),
    "DATASET.IMAGE_LIST": Key("", HARMLESS, "For `ImageFolder`, a JSON list of the images to train on."),
    "DATASET.ON_BAD_IMAGE": Key("skip", MATTERS, "Leave out unreadable images and list them, or stop.", ("skip", "error")),
    "TEST.LABELS": Key("own", HARMLESS, "What a test takes for right: the data set's labels, or the teacher's.", LABELS),
    "TRAIN.CHECKPOINT_EVERY_MINUTES": Key(10.0, HARMLESS, "Minutes between saved states inside an epoch; 0 is none.", FROM_0),
    "TRAIN.DETERMINISTIC": Key(False, ROUNDS, "Deterministic algorithms of PyTorch, so that a run on a GPU is repeatable."),
    "TRAINER.KDPL.TEACHER": Key(
        "ViT-H-14-quickgelu", MATTERS, "[CLIPs](method.md#teachers) or [a table](other_teachers.md).", file=True
    ),
    "TRAINER.KDPL.TEACHER_TEMPLATES": Key("", MATTERS, "Its sentences: `dataset`, `imagenet` or a file.", file=True),
    "TRAINER.KDPL.TEACHER_PROMPTS": Key("", MATTERS, "Folder of [learned prompts](method.md#teachers).", file=True),
    "TRAINER.KDPL.CLASS_AGNOSTIC": Key(False, MATTERS, "[Train without the class names](class_agnostic.md)."),
    "TRAINER.KDPL.K_MAX": Key(1000, MATTERS, "Names of the vocabulary that are selected for each batch.", FROM_2),
    "TRAINER.KDPL.CTX_INIT": Key("a photo of a", MATTERS, "Words of the teacher's sentence with a vocabulary."),
    "TRAINER.KDPL.PREC": Key("fp16", MATTERS, "Precision of the teacher.", PRECISIONS),
    "TRAINER.KDPL.VOCABULARY": Key("imagenet21k", HARMLESS, "`imagenet21k`, `openimages`, or a file of names."),
    "TRAINER.KDPL.EXCLUDE_CLASSNAMES": Key(False, MATTERS, "Leave the data set's own class names out of the vocabulary."),
    "TRAINER.KDPL.SHOTS": Key("class", MATTERS, "Draw images by class, or as many without labels.", ("class", "random")),
    "TRAINER.KDPL.LOSS": Key("symmetric", MATTERS, "The [loss](method.md#the-loss).", LOSSES),
    "TRAINER.KDPL.TEMPERATURE": Key(1.0, MATTERS, "Divides both logits.", ABOVE_0),
    "TRAINER.KDPL.TEACHER_LOGIT_SCALE": Key("student", MATTERS, "Factor of the teacher's logits.", LOGIT_SCALE),
    "TRAINER.KDPL.VIEWS": Key(0, MATTERS, "Fixed views of each image, encoded once; 0: a new augmentation each time.", FROM_0),
    "TRAINER.KDPL.VIEW_SEED": Key(0, MATTERS, "Seed of the fixed views.", FROM_0),
    "TRAINER.KDPL.CACHE_DIR": Key("", HARMLESS, "Folder that stores the features of fixed views; empty is none."),
    "TRAINER.KDPL.COMPILE": Key(False, ROUNDS, "[Compile](performance.md#compiled-towers) the image towers."),
    "TRAINER.KDPL.MAX_TEXT_ROWS": Key(8192, ROUNDS, "Tokens of learned prompts in one pass; 0 is no bound.", FROM_0),
    "TRAINER.KDPL.SHARD_CLASSES": Key(False, ROUNDS, "With several processes, each encodes a share of the class names."),
}
# Options of prompt learners: their defaults are in kdpl/students, and the texts of what one of them alone has.
OPTIONS = {
    "PREC": Key(None, MATTERS, "Precision of the student.", PRECISIONS),
    "N_CTX": Key(None, MATTERS, "Learned context vectors; in CoOp and CoCoOp the words of `CTX_INIT`, if any.", FROM_1),
    "N_CTX_TEXT": Key(None, MATTERS, "Learned text vectors of a layer.", FROM_1),
    "N_CTX_VISION": Key(None, MATTERS, "Learned tokens of a layer of the image tower.", FROM_1),
    "CTX_INIT": Key(None, MATTERS, "Words that the context starts from, in VPT the fixed sentence; empty is random."),
    "CSC": Key(None, MATTERS, "Every class has its own context."),
    "CLASS_TOKEN_POSITION": Key(None, MATTERS, "Place of the class name in the context.", CLASS_TOKEN_POSITIONS),
    "PROMPT_DEPTH": Key(None, MATTERS, "Layers of both towers with prompts of their own.", DEPTH),
    "PROMPT_DEPTH_TEXT": Key(None, MATTERS, "Layers of the text tower with prompts of their own.", DEPTH),
    "PROMPT_DEPTH_VISION": Key(None, MATTERS, "Layers of the image tower with tokens of their own.", DEPTH),
}

KEYS = {**ENGINE, **OWN}


def check_key(name: str, value: Any) -> None:
    """Refuse a value that is not among those of its key in `KEYS`; any value of another key passes.

    Raises:
        ConfigError: the message names the key, its value and what was expected.
    """
    key = KEYS.get(name)
    values = key.values if key else None
    if isinstance(values, Range):
        if not values.fits(value):
            example = f"a value such as {key.default}, " if isinstance(key.default, tuple | list) else ""
            raise ConfigError(f"{name} is {value}, expected {example}{values.words}.")
    elif values:
        check_choice(name, value, values)


def check_choice(key: str, value: str, names: Iterable[str]) -> None:
    """Raise a ConfigError with the key, its value, the names that it takes and the closest of them, unless `value` is one."""
    if value not in names:
        raise ConfigError(f"{key} '{value}' is not one of {', '.join(names)}.{did_you_mean(value, names)}")


def defaults(keys: Mapping[str, Any]) -> dict[str, Any]:
    """Return new nested nodes with the defaults of keys, which have either a `Key` or a default alone."""
    nodes: dict[str, Any] = {}
    for dotted, key in keys.items():
        *path, name = dotted.split(".")
        node = nodes
        for part in path:
            node = node.setdefault(part, {})
        node[name] = deepcopy(getattr(key, "default", key))
    return nodes


def is_distilled(trainer: str) -> bool:
    """Return whether the trainer of this name learns from a teacher without labels."""
    return trainer.startswith("KDPL_")
