"""A sweep's file, and the runs that it stands for, in the output folders of `scripts/base2new` and `scripts/xd`."""

import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from kdpl.common.environment import PACKAGE
from kdpl.common.messages import did_you_mean
from kdpl.config.command_line import CONFIGS, build_cfg, parse_args
from kdpl.config.merging import literal
from kdpl.experiments.results import missing_datasets

PROTOCOLS = ("base2new", "xd", "few_shot")
ZERO_SHOT = {"ZeroshotCLIP": "CoOp", "ZeroshotCLIP2": "CoOp", "ZeroshotTeacher": "KDPL_CoOp"}  # by whose configuration they run
# of a checkout the script, which is what one reads in a log; installed there is none
TRAIN = ["-m", "kdpl.train"] if CONFIGS.parent == PACKAGE else [str(CONFIGS.parent / "train.py")]


class SweepError(ValueError):
    """A sweep's file has an unknown key or a value that is not possible."""


@dataclass(frozen=True)
class Resources:
    """What a run may use; only `jobs`, `gpus` and `restarts` matter on this machine.

    Attributes:
        jobs: runs at once on this machine; 0: one for each GPU, or one.
        max_parallel: runs at once on the cluster.
        restarts: how often a run is started again that was interrupted (on this machine) or ran out of time (on the cluster).
        time: minutes.
        setup: lines of shell before Python starts, such as `module load cuda`.
    """

    jobs: int = 0
    max_parallel: int = 256
    restarts: int = 10
    time: int = 240
    memory: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    cpus: int = 4
    gpus: int = 1
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Sweep:
    """What a sweep's file says. Paths are absolute."""

    name: str
    protocol: str
    trainers: tuple[str, ...]
    datasets: tuple[str, ...]
    source: tuple[str, ...] = ("imagenet",)
    seeds: tuple[int, ...] = (1, 2, 3)
    shots: tuple[int, ...] = (16,)
    config: str = "vit_b32"
    class_agnostic: bool = False
    data: str = ""
    output: Path = Path("output")
    options: tuple[str, ...] = ()  # KEY VALUE KEY VALUE ...
    executor: Resources = field(default_factory=Resources)

    @property
    def folder(self) -> Path:
        """Where the sweep keeps its logs, what became of its runs, and the report."""
        return self.output / "sweeps" / self.name


@dataclass(frozen=True)
class Step:
    """One process of a run: a training with its test, or a test of what was trained.

    Attributes:
        datasets: those whose result makes it done; the first is trained on.
        model_dir: the output folder of the training that is tested; None: this is the training.
        others: test on the data sets that have no result yet, in one process.
    """

    folder: Path
    trainer: str
    config_file: Path
    datasets: tuple[str, ...]
    seed: int
    shots: int
    data: str
    options: tuple[str, ...]
    classes: str = "all"
    model_dir: Path | None = None
    others: bool = False

    def missing(self) -> list[str]:
        """Return the data sets without a result."""
        return missing_datasets(self.folder, self.datasets, self.classes, model_dir=self.model_dir)

    def command(self) -> list[str]:
        """Return the command line that does what is missing; it is that of the bash scripts."""
        datasets = self.missing() or list(self.datasets)
        flags = [] if self.model_dir is None else ["--eval-only", "--model-dir", str(self.model_dir)]
        if self.others:
            flags += ["--eval-datasets", *datasets]
        options = ["DATASET.NUM_SHOTS", str(self.shots)]
        if self.classes != "all":
            options += ["DATASET.SUBSAMPLE_CLASSES", self.classes]
        if self.model_dir is None:
            options += ["TRAIN.CHECKPOINT_FREQ", "1"]
        return [
            sys.executable, *TRAIN, *flags, "--root", self.data, "--seed", str(self.seed), "--trainer", self.trainer,
            "--dataset-config-file", str(CONFIGS / "datasets" / f"{datasets[0]}.yaml"), "--config-file", str(self.config_file),
            "--output-dir", str(self.folder), *options, *self.options,
        ]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One trainer, data set, number of shots and seed: its steps, one after the other."""

    label: str
    steps: tuple[Step, ...]

    def done(self) -> bool:
        return not any(step.missing() for step in self.steps)


def read_sweep(file: str | os.PathLike, data: str = "", output: str = "") -> Sweep:
    """Read a sweep's file.

    Args:
        file: YAML; docs/sweeps.md has the keys.
        data, output: folders that count in place of the file's.

    Raises:
        SweepError: the file cannot be read, or a key or value of it is not known; the closest is named.
        ConfigError: a setting under `options` is not known, or a configuration file does not fit.
    """
    path = Path(file)
    if not path.is_file():
        names = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
        raise SweepError(f"There is no sweep '{path}'.{did_you_mean(path.name, names)}")
    try:
        # All values as text: YAML would read 1:30:00 as a number of seconds, and 1e-5 as a word.
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SweepError(f"'{path}' is not readable YAML: {error}") from error
    if not isinstance(content, dict):
        raise SweepError(f"'{path}' holds no keys, expected some such as 'trainers: [CoOp]'.")
    sweep = _sweep(path, content, data, output)
    _check(sweep)
    return sweep


def runs_of(sweep: Sweep) -> list[Run]:
    """Return all runs of a sweep, in the order of the bash scripts."""
    first = sweep.datasets if sweep.protocol != "xd" else sweep.source
    runs = []
    for trainer in sweep.trainers:
        config_file = config_of(trainer, sweep.config, sweep.protocol)
        for dataset in first:
            for shots in sweep.shots:
                for seed in sweep.seeds:
                    method = f"{trainer}-CA" if sweep.class_agnostic else trainer
                    of_source = dataset if sweep.protocol == "base2new" else f"from {dataset}"
                    label = f"{method} {of_source}, {shots} shots, seed {seed}"
                    runs.append(Run(label, _steps(sweep, method, trainer, config_file, dataset, shots, seed)))
    return runs


def _steps(sweep: Sweep, method: str, trainer: str, config_file: Path, dataset: str, shots: int, seed: int) -> tuple[Step, ...]:
    options = (("TRAINER.KDPL.CLASS_AGNOSTIC", "True") if sweep.class_agnostic else ()) + sweep.options
    common = (trainer, config_file)
    rest = (seed, shots, sweep.data, options)
    name = config_file.stem
    if sweep.protocol == "base2new":
        trained, tested = (
            sweep.output / "base2new" / step / dataset / f"shots_{shots}" / method / name / f"seed{seed}"
            for step in ("train_base", "test_new")
        )
        return (
            Step(trained, *common, (dataset,), *rest, classes="base"),
            Step(tested, *common, (dataset,), *rest, classes="new", model_dir=trained),
        )
    part = Path(method, f"{name}_{shots}shots", f"seed{seed}")
    training = Step(sweep.output / dataset / part, *common, (dataset,), *rest)
    if sweep.protocol == "few_shot":
        return (training,)
    evaluation = "evaluation" if dataset == "imagenet" else f"evaluation_{dataset}"  # sources must not share a folder
    test = Step(sweep.output / evaluation / part, *common, sweep.datasets, *rest, model_dir=training.folder, others=True)
    return training, test


def config_of(trainer: str, config: str, protocol: str) -> Path:
    """Return a trainer's configuration file: of that name, or else the one that begins with it.

    Raises:
        SweepError: there is none, or there are several.
    """
    trainers = sorted(p.name for p in (CONFIGS / "trainers").glob("*"))
    if not trainers:
        raise SweepError(f"There are no configurations in '{CONFIGS}': run sweeps from a checkout of the repository.")
    if trainer not in ZERO_SHOT and trainer not in trainers:
        names = [*trainers, *ZERO_SHOT]
        raise SweepError(f"trainers: '{trainer}' is not one of {', '.join(names)}.{did_you_mean(trainer, names)}")
    folder = CONFIGS / "trainers" / ZERO_SHOT.get(trainer, trainer)
    exact = folder / f"{config}.yaml"
    if exact.is_file():
        return exact
    found = [p for p in sorted(folder.glob("*.yaml")) if p.stem.startswith(f"{config}_") and not _for_xd(p)]
    names = [p.stem for p in sorted(folder.glob("*.yaml"))]
    if len(found) != 1:
        problem = f"several configurations '{config}_*', choose one" if found else f"no configuration '{config}'"
        raise SweepError(f"config: {trainer} has {problem} of {', '.join(names)}.{did_you_mean(config, names)}")
    # PromptSRC has settings of its own for training on all classes of a source.
    special = found[0].with_name(f"{found[0].stem}_cross_datasets.yaml")
    return special if protocol != "base2new" and special.is_file() else found[0]


def _for_xd(file: Path) -> bool:
    return file.stem.endswith("_cross_datasets")


def _sweep(path: Path, content: dict[str, Any], data: str, output: str) -> Sweep:
    given = dict(content)
    _known_keys(given, [k for k in Sweep.__dataclass_fields__ if k != "name"], "a sweep", path)
    for key in ("protocol", "trainers", "datasets"):
        if not given.get(key):
            raise SweepError(f"'{path}' has no '{key}', expected it to say what to run.")
    if given["protocol"] not in PROTOCOLS:
        hint = did_you_mean(given["protocol"], PROTOCOLS)
        raise SweepError(f"protocol: '{given['protocol']}' is not one of {', '.join(PROTOCOLS)}.{hint}")
    if "source" in given and given["protocol"] != "xd":
        raise SweepError(f"source: protocol {given['protocol']} trains on each of 'datasets', expected 'source' with xd alone.")
    values: dict[str, Any] = {"name": path.stem, "protocol": given["protocol"]}
    for key in ("trainers", "datasets", "source"):
        if key in given:
            values[key] = tuple(_list(given[key], key))
    for key in ("seeds", "shots"):
        if key in given:
            values[key] = tuple(_number(v, key) for v in _list(given[key], key))
    if "config" in given:
        values["config"] = _text(given["config"], "config")
    if "class_agnostic" in given:
        values["class_agnostic"] = _flag(given["class_agnostic"], "class_agnostic")
    data = data or _text(given.get("data", ""), "data")
    values["data"] = str(_absolute(data)) if data else ""
    values["output"] = _absolute(output or _text(given.get("output", "output"), "output"))
    values["options"] = tuple(_options(given.get("options") or {}))
    values["executor"] = _resources(given.get("executor") or {}, path)
    return Sweep(**values)


def _resources(given: Any, path: Path) -> Resources:
    if not isinstance(given, dict):
        raise SweepError(f"executor: is '{given}', expected keys such as 'partition: gpu'.")
    _known_keys(given, list(Resources.__dataclass_fields__), "executor", path)
    values: dict[str, Any] = {}
    for key, value in given.items():
        full = f"executor.{key}"
        if key == "time":
            values[key] = minutes(_text(value, full))
        elif key == "setup":
            values[key] = tuple(_list(value, full))
        elif key in ("jobs", "max_parallel", "restarts", "cpus", "gpus"):
            values[key] = _number(value, full, at_least=1 if key in ("max_parallel", "cpus") else 0)
        else:
            values[key] = _text(value, full)
    if values.get("memory") and not re.fullmatch(r"\d+[KMGT]?", values["memory"]):
        raise SweepError(f"executor.memory is '{values['memory']}', expected a number and K, M, G or T, such as 32G.")
    if values.get("gpus", 0) > 1:
        raise SweepError(f"executor.gpus is {values['gpus']}, expected 0 or 1: a run of a sweep is one process.")
    return Resources(**values)


def _check(sweep: Sweep) -> None:
    """Refuse data sets, trainers and settings that are not known, before anything is started."""
    known = sorted(p.stem for p in (CONFIGS / "datasets").glob("*.yaml"))
    source = sweep.source if sweep.protocol == "xd" else ()
    for key, names in (("datasets", sweep.datasets), ("source", source)):
        for name in names:
            if name not in known:
                raise SweepError(f"{key}: '{name}' is not one of {', '.join(known)}.{did_you_mean(name, known)}")
    for trainer in sweep.trainers:
        if sweep.class_agnostic and not trainer.startswith("KDPL_"):
            raise SweepError(f"class_agnostic: '{trainer}' knows no class-agnostic mode, expected trainers of KDPL alone.")
    steps = [step for run in runs_of(sweep) for step in run.steps]
    for step in {(step.config_file, step.datasets[0]): step for step in steps}.values():
        args = parse_args(step.command()[2:])
        build_cfg(args, args.dataset_config_file)
    folders = [step.folder for step in steps]
    if len(set(folders)) < len(folders):
        raise SweepError("A trainer, data set, seed or number of shots is given twice: expected each once.")


def minutes(text: str) -> int:
    """Read a time as Slurm does: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        SweepError: it is none of these, or 0.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if match is None:
        raise SweepError(f"executor.time is '{text}', expected minutes, H:MM:SS or D-HH:MM:SS, such as 4:00:00.")
    days, *parts = (None if g is None else int(g) for g in match.groups())
    values = [v for v in parts if v is not None]
    if days is not None or len(values) == 3:
        h, m, s = [*values, 0, 0][:3]
    else:
        h, m, s = 0, *[*values, 0][:2]
    total = math.ceil((days or 0) * 1440 + h * 60 + m + s / 60)
    if not total:
        raise SweepError(f"executor.time is '{text}', expected more than nothing.")
    return total


def _known_keys(given: dict[str, Any], known: Sequence[str], what: str, path: Path) -> None:
    for key in given:
        if key not in known:
            raise SweepError(
                f"'{key}' is not a key of {what} (in '{path}'), expected {', '.join(known)}.{did_you_mean(key, known)}"
            )


def _list(value: Any, key: str) -> list[str]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str) and v for v in values):
        raise SweepError(f"{key} is {value!r}, expected names or numbers, such as [1, 2, 3].")
    return values


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise SweepError(f"{key} is {value!r}, expected one value.")
    return value


def _number(value: Any, key: str, at_least: int = 0) -> int:
    if not isinstance(value, str) or not value.isdecimal() or int(value) < at_least:
        raise SweepError(f"{key} is {value!r}, expected a whole number of at least {at_least}.")
    return int(value)


def _flag(value: Any, key: str) -> bool:
    if str(value).lower() not in ("true", "false"):
        raise SweepError(f"{key} is {value!r}, expected true or false.")
    return value.lower() == "true"


def _absolute(folder: str) -> Path:
    return Path(os.path.expandvars(folder)).expanduser().absolute()


def _options(given: Any, prefix: str = "") -> Iterable[str]:
    """Yield a mapping of settings as KEY, VALUE, KEY, VALUE."""
    if not isinstance(given, dict):
        raise SweepError(f"options: is {given!r}, expected settings such as 'OPTIM.MAX_EPOCH: 5'.")
    for key, value in given.items():
        if isinstance(value, dict):
            yield from _options(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
            yield repr([literal(_python(v)) for v in value]) if isinstance(value, list) else _python(value)


def _python(value: str) -> str:
    """Spell YAML's true and false as the command line does."""
    return value.capitalize() if value in ("true", "false") else value
