"""The configuration that all trainers and data sets share."""

from yacs.config import CfgNode as CN


def get_cfg_default() -> CN:
    """Return a new configuration with every key at its default."""
    return cfg_default.clone()


def clean_cfg(cfg: CN, trainer: str) -> None:
    """Remove the nodes of TRAINER other than this trainer's, in place: what is printed is shorter."""
    for key in [key for key in cfg.TRAINER if key not in ("NAME", trainer.upper())]:
        del cfg.TRAINER[key]


def _defaults() -> CN:
    train = {"SAMPLER": "RandomSampler", "BATCH_SIZE": 32, "N_DOMAIN": 0, "N_INS": 16}
    return CN(
        {
            "VERSION": 1,
            "OUTPUT_DIR": "./output",
            "RESUME": "",  # the folder of an earlier run to resume from; empty: OUTPUT_DIR
            "SEED": -1,  # negative: every run differs
            "USE_CUDA": True,
            "VERBOSE": True,
            "INPUT": {
                "SIZE": (224, 224),  # height, width
                "INTERPOLATION": "bilinear",
                "TRANSFORMS": (),
                "NO_TRANSFORM": False,
                "PIXEL_MEAN": [0.485, 0.456, 0.406],
                "PIXEL_STD": [0.229, 0.224, 0.225],
                "CROP_PADDING": 4,
                "RRCROP_SCALE": (0.08, 1.0),
                "CUTOUT_N": 1,
                "CUTOUT_LEN": 16,
                "GN_MEAN": 0.0,
                "GN_STD": 0.15,
                "RANDAUGMENT_N": 2,
                "RANDAUGMENT_M": 10,
                "COLORJITTER_B": 0.4,
                "COLORJITTER_C": 0.4,
                "COLORJITTER_S": 0.4,
                "COLORJITTER_H": 0.1,
                "RGS_P": 0.2,
                "GB_P": 0.5,
                "GB_K": 21,
            },
            "DATASET": {
                "ROOT": "",
                "NAME": "",
                "SOURCE_DOMAINS": (),
                "TARGET_DOMAINS": (),
                "NUM_LABELED": -1,
                "NUM_SHOTS": -1,  # images per class; -1: all
                "VAL_PERCENT": 0.1,
                "STL10_FOLD": -1,
                "CIFAR_C_TYPE": "",
                "CIFAR_C_LEVEL": 1,
                "ALL_AS_UNLABELED": False,
            },
            "DATALOADER": {
                "NUM_WORKERS": 4,
                "K_TRANSFORMS": 1,  # augmented views of each training image
                "RETURN_IMG0": False,  # the image without augmentation as well
                "TRAIN_X": dict(train),
                "TRAIN_U": {"SAME_AS_X": True, **train},
                "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 32},
            },
            "MODEL": {
                "INIT_WEIGHTS": "",
                "BACKBONE": {"NAME": "", "PRETRAINED": True},
                "HEAD": {"NAME": "", "HIDDEN_LAYERS": (), "ACTIVATION": "relu", "BN": True, "DROPOUT": 0.0},
            },
            "OPTIM": {
                "NAME": "adam",
                "LR": 0.0003,
                "WEIGHT_DECAY": 5e-4,
                "MOMENTUM": 0.9,
                "SGD_DAMPNING": 0,
                "SGD_NESTEROV": False,
                "RMSPROP_ALPHA": 0.99,
                "ADAM_BETA1": 0.9,
                "ADAM_BETA2": 0.999,
                "STAGED_LR": False,
                "NEW_LAYERS": (),  # with STAGED_LR: these child modules learn at LR, the rest at LR * BASE_LR_MULT
                "BASE_LR_MULT": 0.1,
                "LR_SCHEDULER": "single_step",
                "STEPSIZE": (-1,),  # epochs; -1: MAX_EPOCH
                "GAMMA": 0.1,
                "MAX_EPOCH": 10,
                "WARMUP_EPOCH": -1,  # -1: no warm-up
                "WARMUP_TYPE": "linear",
                "WARMUP_CONS_LR": 1e-5,
                "WARMUP_MIN_LR": 1e-5,
                "WARMUP_RECOUNT": True,
            },
            "TRAIN": {
                "CHECKPOINT_FREQ": 0,  # in epochs; 0: after the last one only
                "PRINT_FREQ": 10,  # in batches
                "COUNT_ITER": "train_x",
            },
            "TEST": {
                "EVALUATOR": "Classification",
                "PER_CLASS_RESULT": False,
                "COMPUTE_CMAT": False,  # writes the confusion matrix to OUTPUT_DIR/cmat.pt
                "NO_TEST": False,
                "SPLIT": "test",  # test or val
                "FINAL_MODEL": "last_step",  # last_step or best_val
            },
            "TRAINER": {"NAME": ""},
        }
    )


cfg_default = _defaults()
