"""Write docs/configuration.md, and what training.md and api.md list: `python docs/configuration.py`.

Both are made from the table of keys (kdpl/config/keys.py) and the learners (kdpl/students).
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from kdpl.clip.loading import describe
from kdpl.config.keys import KEYS, MATTERS, OPTIONS, UNREAD, Key, Range
from kdpl.students import LEARNERS, Student

HERE = Path(__file__).resolve().parent
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
Of a file or folder the content is compared, not the path.
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
}


def options(learner: type[Student]) -> dict[str, Key]:
    """Return the options of a prompt learner.

    Raises:
        KeyError: nothing says what an option does.
    """
    found = {}
    for option, default in learner.defaults.items():
        name, shared = f"TRAINER.{learner.node}.{option}", OPTIONS.get(option)
        if option not in learner.texts and shared is None:
            raise KeyError(f"Nothing says what {name} does: add '{option}' to the `texts` of {learner.__name__}.")
        found[name] = Key(default, MATTERS, learner.texts.get(option) or shared.text, shared.values if shared else None)
    return found


def rows(keys: dict[str, Key]) -> Iterator[str]:
    """Yield the lines of a table."""
    yield "| key | default | type | values | what it does | prompts |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for name, key in keys.items():
        shown = f"`{key.default!r}`" if key.default != "" else "empty"
        values = key.values.words if isinstance(key.values, Range) else ", ".join(f"`{value}`" for value in key.values or ())
        text = key.text.removesuffix(".") + (", as the student needs it unless it is set." if key.follows else ".")
        yield f"| `{name}` | {shown} | {type(key.default).__name__} | {values} | {text} | {key.influence} |"


def page() -> str:
    """Return the whole page."""
    groups: dict[str, list[str]] = {}
    for key in UNREAD:
        group, _, name = key.rpartition(".")
        groups.setdefault(f"{group}." if group else "", []).append(name)
    unread = "; ".join(f"`{group}` {', '.join(names)}" if group else ", ".join(names) for group, names in groups.items())
    parts = [HEAD, f"Dassl's other keys are accepted, and only an installed Dassl reads them: {unread}.\n"]
    for prefix, title in GROUPS.items():
        inside = f"{prefix}." if prefix else ("", "TRAINER")
        group = {n: k for n, k in KEYS.items() if (n.startswith(inside) if prefix else n.rpartition(".")[0] in inside)}
        parts.append("\n".join([f"## {title}\n", *rows(group), ""]))
    parts += ["\n".join([f"## {learner.__name__}\n", *rows(options(learner)), ""]) for learner in LEARNERS]
    return "\n".join(parts)


def needs_vit(learner: type[Student]) -> bool:
    """Whether a learner refuses a ResNet."""
    try:
        learner.check(learner.defaults, describe("RN50"), "RN50")
    except ValueError:
        return True
    return False


def training_page() -> str:
    """Return docs/training.md with the table of trainers, as the first lines of the learners' files have it."""
    lines = ["| trainer | learns | student |", "| --- | --- | --- |"]
    for learner in LEARNERS:
        name = learner.__name__
        about = sys.modules[learner.__module__].__doc__.splitlines()[0].partition(": ")[2].removesuffix(".")
        lines.append(f"| `KDPL_{name}`, `{name}` | {about} | {'ViT' if needs_vit(learner) else 'any CLIP'} |")
    nothing = "nothing: one sentence, the mean over 80 and the data set's own, the teacher"
    lines.append(f"| `ZeroshotCLIP`, `ZeroshotCLIP2`, `ZeroshotTeacher` | {nothing} | any CLIP |\n")
    return filled("training.md", "trainers", "\n".join(lines))


def api_page() -> str:
    """Return docs/api.md with all prompt learners."""
    return filled("api.md", "learners", "\n".join(f"::: {learner.__module__}.{learner.__name__}\n" for learner in LEARNERS))


def filled(page: str, name: str, text: str) -> str:
    """Return a page with a text between its marks of this name."""
    marks = re.compile(rf"(?<=<!-- {name}: begin -->\n).*?(?=<!-- {name}: end -->)", re.S)
    return marks.sub(text, (HERE / page).read_text(encoding="utf-8"))


PAGES = {"configuration.md": page, "training.md": training_page, "api.md": api_page}


def main() -> int:
    for name, write in PAGES.items():
        text = write()
        (HERE / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
