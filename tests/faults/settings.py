"""Change every key of the configuration, one at a time, in the folder of a finished run.

    python tests/faults/settings.py
    python tests/faults/settings.py --keys OPTIM. TRAINER.KDPL.

Each change must be refused by name, or be harmless: then the folder ends with the prompts that a fresh run with the same
setting gives, to the last bit, or within rounding if kdpl/config/keys.py says so. Prints a line for each key and exits
with 1 if one is neither.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import kdpl  # first: it makes `dassl` importable

import torch  # isort: skip
from support import ROOT  # isort: skip
from support.trainings import build, parameters  # isort: skip

from kdpl.config.manifest import OtherRunError, influence, leaves

TRAINER, NODE = "KDPL_CoOp", "COOP"
RUN = ("OPTIM.MAX_EPOCH", 2, "DATALOADER.TRAIN_X.BATCH_SIZE", 15, "TEST.NO_TEST", True, "TRAIN.CHECKPOINT_FREQ", 1)
ROUNDING = 1e-4
OTHERS = {
    "INPUT.INTERPOLATION": "bilinear",
    "INPUT.TRANSFORMS": ("random_resized_crop", "normalize"),
    "INPUT.PIXEL_MEAN": [0.5, 0.5, 0.5],
    "INPUT.PIXEL_STD": [0.5, 0.5, 0.5],
    "INPUT.RRCROP_SCALE": (0.3, 1.0),
    "INPUT.SIZE": (32, 32),
    "DATASET.NAME": "EmojiLeisure",
    "DATASET.ROOT": "{elsewhere}",
    "DATASET.SOURCE_DOMAINS": ("noto",),
    "DATASET.TARGET_DOMAINS": ("twemoji",),
    "DATASET.SUBSAMPLE_CLASSES": "new",
    "DATASET.TEMPLATE": "an icon of a {}.",
    "DATASET.CLASSNAMES": "{names}",
    "DATASET.ON_BAD_IMAGE": "error",
    "DATALOADER.TRAIN_X.SAMPLER": "SequentialSampler",
    "DATALOADER.TRAIN_U.SAMPLER": "SequentialSampler",
    "DATALOADER.TEST.SAMPLER": "RandomSampler",
    "MODEL.BACKBONE.NAME": "emoji_teacher",
    "MODEL.INIT_WEIGHTS": "{weights}",
    "OPTIM.NAME": "adam",
    "OPTIM.LR_SCHEDULER": "single_step",
    "OPTIM.WARMUP_TYPE": "linear",
    "OPTIM.NEW_LAYERS": ("ctx",),
    "TEST.SPLIT": "val",
    "TEST.FINAL_MODEL": "best_val",
    "TRAINER.NAME": "CoOp",
    "TRAINER.COOP.CTX_INIT": "an icon of a",
    "TRAINER.COOP.CLASS_TOKEN_POSITION": "middle",
    "TRAINER.KDPL.TEACHER": "emoji_student",
    "TRAINER.KDPL.TEACHER_TEMPLATES": "imagenet",
    "TRAINER.KDPL.LOSS": "reverse",
    "TRAINER.KDPL.SHOTS": "random",
    "TRAINER.KDPL.TEACHER_LOGIT_SCALE": "own",
    "TRAINER.KDPL.VOCABULARY": "{names}",
    "TRAINER.KDPL.CACHE_DIR": "",  # refused without views, whatever the folder
}
LEFT_OUT = ("OUTPUT_DIR", "RESUME", "TEST.EVALUATOR")  # where the run is, and what has one value


def other_value(key: str, value: object, folder: Path) -> object:
    """Return a value of the same kind that a key could have instead."""
    if key in OTHERS:
        other = OTHERS[key]
        files = {"{names}": "names.txt", "{weights}": "weights.pth.tar", "{elsewhere}": "elsewhere"}
        return str(folder / files[other]) if isinstance(other, str) and other in files else other
    if key.endswith(".PREC"):
        return "bf16" if value != "bf16" else "fp32"
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value * 1.5 + 0.01
    return f"{value}x" if isinstance(value, str) else ("x",)


@contextlib.contextmanager
def quietly() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


def outcome(work: Path, key: str, value: object) -> str:
    """Return what a change does in a copy of a run's folder: "refused: ...", "harmless", "rounds" or "WRONG: ..."."""
    copy, options = work / "copy", [*RUN, key, value]
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(work / "finished", copy)
    trainer = str(value) if key == "TRAINER.NAME" else TRAINER
    try:
        ours = trained(trainer, copy, options)
    except OtherRunError:
        return "refused"
    except (ValueError, KeyError, OSError, AssertionError) as error:
        return f"refused: {str(error).splitlines()[0][:80]}"
    shutil.rmtree(work / "fresh", ignore_errors=True)
    largest = max((ours[k] - v).abs().max().item() for k, v in trained(TRAINER, work / "fresh", options).items())
    if largest == 0:
        return "harmless"
    if influence(key, NODE, True) == "rounds" and largest < ROUNDING:
        return "rounds"
    return f"WRONG: the prompts differ from a fresh run's by {largest:.1e}"


def trained(trainer: str, folder: Path, options: list) -> dict[str, torch.Tensor]:
    with quietly():
        run = build(trainer, folder, *options)
        run.train()
    return parameters(run)


def check(keys: list[str]) -> list[str]:
    """Print a line for each key that begins with one of `keys`; return those that were neither refused nor harmless."""
    wrong = []
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "names.txt").write_text("cat\ndog\n")
        with quietly():
            finished = build(TRAINER, work / "finished", *RUN)
            finished.train()
        shutil.copy(next((work / "finished").rglob("model.pth.tar-1")), work / "weights.pth.tar")
        for key, value in leaves(finished.cfg):
            if key not in LEFT_OUT and key.startswith(tuple(keys)):
                other = other_value(key, value, work)
                line = f"{key}: {value!r} -> {other!r}: {outcome(work, key, other)}"
                print(line, flush=True)
                wrong += [line] if "WRONG" in line else []
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", nargs="+", default=[""], help="beginnings of keys (default: all)")
    args = parser.parse_args()
    os.chdir(ROOT)
    wrong = check(args.keys)
    print("\n".join(["", f"{len(wrong)} settings could be mixed in silence", *wrong]))
    return 1 if wrong else 0


__all__ = ["check", "kdpl"]

if __name__ == "__main__":
    sys.exit(main())
