"""Write docs/configuration.md, the reference of all configuration keys: `python docs/configuration.py`.

Names, defaults, types, allowed values and influence come from the code; what a key does comes from configuration.yaml.
"""

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import kdpl
from kdpl.common.environment import BUNDLED_ENGINE
from kdpl.config.checks import CHOICES, RANGES
from kdpl.config.choices import ALLOWED, CLASS_TOKEN_POSITIONS, PRECISIONS
from kdpl.config.influence import influence, leaves
from kdpl.students import LEARNERS
from kdpl.training.schedule import SCHEDULES, WARMUPS

HERE = Path(__file__).resolve().parent
OTHER_CHOICES = {"OPTIM.LR_SCHEDULER": SCHEDULES, "OPTIM.WARMUP_TYPE": WARMUPS, "TRAINER.KDPL.ALLOW": ALLOWED}
OTHER_RANGES = {
    "INPUT.SIZE": "two numbers above 0",
    "INPUT.PIXEL_MEAN": "three numbers",
    "INPUT.PIXEL_STD": "three numbers above 0",
    "INPUT.RRCROP_SCALE": "two numbers, 0 to 1",
    "TRAINER.KDPL.TEACHER_TEMPLATES": "`dataset`, `imagenet`, a file of sentences",
    "TRAINER.KDPL.TEACHER_PROMPTS": "a folder, a file, `hf-hub:OWNER/NAME`",
    "TRAINER.KDPL.TEACHER_LOGIT_SCALE": "`student`, `own`, a number above 0",
    "TRAINER.PROMPTSRC.GPA_STD": "a number above 0",
    "TRAINER.TASKRES.RESIDUAL_SCALE": "a number above 0",
}
HEAD = """# Configuration reference

<!-- Written by docs/configuration.py: do not edit. -->

Every key of a configuration, as `train.py` has it. A value is taken from, in this order: the defaults below, the file of
`--dataset-config-file`, the file of `--config-file`, the flags, and pairs at the end of the command line:

```bash
python train.py --trainer KDPL_CoOp --dataset-config-file configs/datasets/emoji_meals.yaml \\
    --config-file configs/trainers/KDPL_CoOp/emoji.yaml --output-dir output/meals OPTIM.LR 0.01 DATASET.NUM_SHOTS 16
```

An unknown key, a value of another type, and one out of range are refused with exit code 2 and the closest valid name.

The last column says what a key does to the learned prompts, and so to the [manifest](reliability.md#the-manifest):

- **matters**: another value gives other prompts. It is in the manifest, and a folder with another value is refused.
- **rounds**: another value moves them by rounding alone. It is recorded.
- **harmless**: another value gives the same prompts.

The keys of `TRAINER.KDPL` matter in runs with a teacher, and those of a prompt learner in its own runs, with or without labels.
"""
GROUPS = {
    "": "The run",
    "INPUT": "Images",
    "DATASET": "Data sets",
    "DATALOADER": "Loading",
    "MODEL": "The student",
    "OPTIM": "Optimisation",
    "TRAIN": "Checkpoints and the log",
    "TEST": "Tests",
    "TRAINER.KDPL": "Distillation",
    **{f"TRAINER.{learner.node}": learner.__name__ for learner in LEARNERS},
}


def defaults() -> dict[str, Any]:
    """Return all keys with their defaults, of the bundled engine and of KDPL; an installed Dassl may have others."""
    spec = importlib.util.spec_from_file_location("bundled_config", BUNDLED_ENGINE / "dassl/config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    cfg = module.get_cfg_default()
    kdpl.extend_cfg(cfg)
    return dict(leaves(cfg))


def allowed(key: str) -> str:
    """Return the values that a key takes; empty if any of its type."""
    name = key.rpartition(".")[2]
    choices = {**CHOICES, **OTHER_CHOICES}.get(key)
    if key.startswith("TRAINER.") and name in ("PREC", "CLASS_TOKEN_POSITION"):
        choices = PRECISIONS if name == "PREC" else CLASS_TOKEN_POSITIONS
    if choices:
        return ", ".join(f"`{choice}`" for choice in choices)
    if name.startswith("N_CTX"):
        return "1 or more"
    if name.startswith("PROMPT_DEPTH"):
        return "1 to the tower's layers"
    ranges = (words for _, words, keys in RANGES if key in keys.split())
    return OTHER_RANGES.get(key) or next(ranges, "")


def rows(values: dict[str, Any], texts: dict[str, str]) -> Iterator[str]:
    """Give the lines of a table.

    Raises:
        KeyError: a key has no text; the message says where to write it.
    """
    yield "| key | default | type | values | what it does | prompts |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for key, value in values.items():
        group, _, node = key.rpartition(".")[0].partition(".")
        text = texts.get(key) or (texts.get(f"TRAINER.*.{key.rpartition('.')[2]}") if group == "TRAINER" else None)
        if text is None:
            raise KeyError(f"docs/configuration.yaml has no text for {key}: say there what the key does.")
        shown = f"`{value!r}`" if value != "" else "empty"
        kind = influence(key, node if group == "TRAINER" else "", True)
        yield f"| `{key}` | {shown} | {type(value).__name__} | {allowed(key)} | {text} | {kind} |"


def page() -> str:
    """Return the whole page.

    Raises:
        KeyError: a key has no text.
        ValueError: a text belongs to no key.
    """
    texts = yaml.safe_load((HERE / "configuration.yaml").read_text(encoding="utf-8"))
    values = defaults()
    patterns = {f"TRAINER.*.{key.rpartition('.')[2]}" for key in values if key.startswith("TRAINER.")}
    if unknown := sorted(set(texts) - set(values) - patterns):
        raise ValueError(f"docs/configuration.yaml describes {', '.join(unknown)}, which no configuration has: remove it.")
    parts = [HEAD]
    for prefix, title in GROUPS.items():
        own = {
            k: v for k, v in values.items() if (k.startswith(f"{prefix}.") if prefix else "." not in k or k == "TRAINER.NAME")
        }
        parts.append("\n".join([f"## {title}\n", *rows(own, texts), ""]))
    return "\n".join(parts)


def main() -> int:
    (HERE / "configuration.md").write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
