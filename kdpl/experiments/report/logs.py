"""The `log.txt` of a run, as Dassl and its forks write it: arguments, configuration and test results."""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdpl.config.teachers import teacher_label

_SETTING = re.compile(r"( *)([A-Za-z_]\w*):(?: (.*))?$")
_ACCURACY = re.compile(r"\* accuracy: ([\d.eE+-]+)%?$")
_TESTED = re.compile(r"Evaluate on the \*(\w+)\* set")


@dataclass
class Log:
    """The content of a run's logs.

    Attributes:
        arguments: of the command line, as text.
        config: the configuration, dotted keys to text.
        accuracies: the last accuracy of each split, in percent. Of a training run only what follows its end; tests in between
            are of an unfinished model.
    """

    arguments: dict[str, str] = field(default_factory=dict)
    config: dict[str, str] = field(default_factory=dict)
    accuracies: dict[str, float] = field(default_factory=dict)

    @property
    def evaluates_only(self) -> bool:
        """Whether the run tested a model that another run had trained."""
        return self.arguments.get("eval_only") == "True"

    def results(self, folder: Path) -> dict[str, Any] | None:
        """Return what `results.json` would have of a run, as far as its log has it; None without a result."""
        config = self.config
        if not self.accuracies or not config.get("DATASET.NAME"):
            return None
        trainer, newest = config.get("TRAINER.NAME", ""), max(file.stat().st_mtime for file in log_files(folder))
        distilled = "KDPL" in trainer
        taught = [config.get(f"TRAINER.KDPL.{key}", "") for key in ("TEACHER", "TEACHER_TEMPLATES", "TEACHER_PROMPTS")]
        tested = {
            "dataset": config["DATASET.NAME"],
            "classes": config.get("DATASET.SUBSAMPLE_CLASSES") or "all",
            "source_domains": as_list(config.get("DATASET.SOURCE_DOMAINS", "")),
            "target_domains": as_list(config.get("DATASET.TARGET_DOMAINS", "")),
            "time": f"log {newest:020.3f}",
        }
        return {
            "trainer": trainer,
            "backbone": config.get("MODEL.BACKBONE.NAME", ""),
            "teacher": teacher_label(*taught) if distilled or trainer == "ZeroshotTeacher" else None,
            "class_agnostic": distilled and config.get("TRAINER.KDPL.CLASS_AGNOSTIC") == "True",
            "seed": int(config.get("SEED", -1)),
            "shots": int(config.get("DATASET.NUM_SHOTS", -1)),
            "config_name": "",
            "model_dir": None,
            "output_dir": config.get("OUTPUT_DIR") or self.arguments.get("output_dir", ""),
            "template": config.get("DATASET.TEMPLATE", ""),
            "results": [{**tested, "split": split, "accuracy": value} for split, value in self.accuracies.items()],
        }


def log_files(folder: Path) -> list[Path]:
    """Return the logs in a folder, oldest first: a run that was resumed has one for each start."""
    return sorted(path for path in folder.glob("log.txt*") if path.is_file())


def read_logs(folder: Path) -> Log:
    """Read all logs of a run; a later one counts before an earlier one."""
    log = Log()
    for path in log_files(folder):
        _read_into(log, path.read_text(encoding="utf-8", errors="replace").splitlines())
    return log


def as_list(value: str) -> list[str]:
    """Return the words of a printed list or tuple, such as "('twemoji',)"."""
    return re.findall(r"[^\s\[\]()'\",]+", value)


def _read_into(log: Log, lines: list[str]) -> None:
    stripped = [line.strip() for line in lines]
    for title, settings in (("** Arguments **", log.arguments), ("** Config **", log.config)):
        if title in stripped:
            settings.clear()
            settings.update(_settings(lines[stripped.index(title) + 1 :]))
    finished, split = log.evaluates_only, "test"
    for line in stripped:
        if line == "Finish training":
            finished = True
        elif match := _TESTED.match(line):
            split = match[1]
        elif finished and (match := _ACCURACY.match(line)):
            log.accuracies[split] = float(match[1])


def _settings(lines: list[str]) -> dict[str, str]:
    """Return the printed settings, dotted keys to text, up to the first line that is not a setting."""
    settings: dict[str, str] = {}
    nodes: list[tuple[int, str]] = []  # the indents and names of what the line lies in
    for line in lines:
        if set(line.strip()) == {"*"}:  # the frame that Dassl draws around titles
            continue
        if not (match := _SETTING.match(line.rstrip())):
            break
        indent, name, value = len(match[1]), match[2], match[3]
        while nodes and nodes[-1][0] >= indent:
            nodes.pop()
        if value is None:
            nodes.append((indent, name))
        else:
            settings[".".join([*(node for _, node in nodes), name])] = value.strip().strip("'\"")
    return settings
