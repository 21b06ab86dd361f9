"""The flags of `train.py`, the same as in CoOp and its forks, and the configuration built from them."""

import argparse
import re
import sys
from pathlib import Path

from kdpl.common.environment import PACKAGE
from kdpl.common.messages import did_you_mean
from kdpl.config.checks import check_values
from kdpl.config.defaults import merged_cfg

# Installed, the configurations lie in the package; in a checkout they lie beside it.
CONFIGS = next(p for p in (PACKAGE / "configs", PACKAGE.parent / "configs") if p.is_dir() or p.parent != PACKAGE)
DESCRIPTION = "Train and evaluate prompt learners, with the flags of CoOp and its forks."


def parse_args(argv: list[str] | None = None, description: str = DESCRIPTION) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s [flags] [KEY VALUE ...]",
        description=description,
        epilog="After the flags, KEY VALUE pairs change single settings: OPTIM.LR 0.01 DATASET.NUM_SHOTS 16",
    )
    parser.add_argument("--root", default="", help="folder of the data sets")
    parser.add_argument("--output-dir", default="", help="folder for log, checkpoints and results")
    parser.add_argument("--resume", default="", help="output folder of the run to resume (default: --output-dir)")
    parser.add_argument("--seed", type=int, help="seed of all random choices; negative: a random seed")
    parser.add_argument("--source-domains", nargs="+", help="domains to train on")
    parser.add_argument("--target-domains", nargs="+", help="domains to test on")
    parser.add_argument("--transforms", nargs="+", help="image transforms")
    parser.add_argument("--config-file", default="", help="configuration of the trainer")
    parser.add_argument("--dataset-config-file", default="", help="configuration of the data set")
    parser.add_argument("--trainer", default="", help="name of the trainer, such as KDPL_CoOp")
    add_learner_flag(parser)
    parser.add_argument("--backbone", default="", help="the student CLIP, such as ViT-B/32")
    parser.add_argument("--head", default="", help="MODEL.HEAD.NAME, for the forks' scripts")
    parser.add_argument("--eval-only", action="store_true", help="evaluate without training")
    parser.add_argument("--model-dir", default="", help="output folder of the run to evaluate, with --eval-only")
    parser.add_argument("--load-epoch", type=int, help="epoch to evaluate (default: the best, else the newest)")
    parser.add_argument("--fresh", action="store_true", help="start over: move what is in the output folder into a subfolder")
    parser.add_argument("--no-train", action="store_true", help="build everything, but do not train")
    parser.add_argument(
        "--eval-datasets",
        nargs="+",
        default=[],
        metavar="NAME",
        help="data sets to test on in the same process after the run: names or paths of data set configurations",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, default=[], metavar="KEY VALUE", help="single settings")
    # A list of a flag would take every word up to the next flag, so the pairs are kept from it.
    words = list(sys.argv[1:] if argv is None else argv)
    end = next((i for i, word in enumerate(words) if re.fullmatch(r"[A-Z][A-Z0-9_]*(\.[A-Z0-9_]+)+", word)), len(words))
    args, unknown = parser.parse_known_args(words[:end])
    if unknown:
        flags = [flag for action in parser._actions for flag in action.option_strings]
        parser.error(f"unrecognized arguments: {' '.join(unknown)}.{did_you_mean(unknown[0], flags)}")
    args.opts += words[end:]
    return args


def add_learner_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--learner`, whose files `kdpl.trainers.load_learners` imports before the configuration is read."""
    help_text = "Python file that defines a prompt learner (docs/new_student.md); may be given several times"
    parser.add_argument("--learner", action="append", default=[], metavar="FILE.py", help=help_text)


def build_cfg(args: argparse.Namespace, dataset_config_file: str):
    """Return the frozen configuration, merged in this order: defaults, data set file, trainer file, flags, KEY VALUE pairs."""
    flags = {
        "DATASET.ROOT": args.root,
        "OUTPUT_DIR": args.output_dir,
        "RESUME": args.resume,
        "SEED": args.seed,
        "DATASET.SOURCE_DOMAINS": args.source_domains,
        "DATASET.TARGET_DOMAINS": args.target_domains,
        "INPUT.TRANSFORMS": args.transforms,
        "TRAINER.NAME": args.trainer,
        "MODEL.BACKBONE.NAME": args.backbone,
        "MODEL.HEAD.NAME": args.head,
    }
    cfg = merged_cfg((dataset_config_file, args.config_file), flags, args.opts)
    check_values(cfg)
    cfg.freeze()
    return cfg


def find_dataset_config(name: str, dataset_config_file: str) -> str:
    """Return a data set's configuration file from its path or name, searched beside --dataset-config-file first."""
    if name.endswith(".yaml"):
        return name
    beside, ours = (folder / f"{name}.yaml" for folder in (Path(dataset_config_file).parent, CONFIGS / "datasets"))
    return str(beside if beside.is_file() else ours)
