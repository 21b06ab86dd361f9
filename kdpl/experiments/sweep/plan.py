"""Read a sweep from a YAML file or from flags; refuse what is unknown, before anything is started."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kdpl.common.messages import did_you_mean
from kdpl.config.command_line import CONFIGS, build_cfg, parse_args
from kdpl.config.merging import literal
from kdpl.experiments.sweep.runs import STEPS, Resources, Sweep, SweepError, check_known, runs_of

PROTOCOLS = ("base2new", "xd", "few_shot")


def read_sweep(file: str | os.PathLike, data: str = "", output: str = "") -> Sweep:
    """Read a sweep's file.

    Args:
        file: YAML; docs/sweeps.md has the keys.
        data, output: folders that replace those of the file.

    Raises:
        SweepError: the file cannot be read, or a key or value of it is unknown; the closest is named.
        ConfigError: a setting under `options` is unknown, or a configuration file does not fit.
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
    folders = {key: folder for key, folder in (("data", data), ("output", output)) if folder}
    return sweep_of(content | folders, path.stem, f"'{path}'")


def sweep_of(content: Mapping[str, Any], name: str, where: str) -> Sweep:
    """Return the sweep that keys and values describe.

    Args:
        content: values as text, lists of texts or mappings; `options` also as a tuple KEY, VALUE, KEY, VALUE.
        name: its folder in OUTPUT/sweeps.
        where: the source of the keys, for errors.

    Raises:
        SweepError, ConfigError: as `read_sweep`.
    """
    values = {"output": _folder("output", "output"), **_read(content, _SWEEP, "a sweep", where)}
    for key in ("protocol", "trainers", "datasets"):
        if not values.get(key):
            raise SweepError(f"'{key}' is missing in {where}, expected it to say what to run.")
    protocol = values["protocol"]
    check_known("protocol", [protocol], PROTOCOLS)
    if "source" in values and protocol != "xd":
        raise SweepError(f"source: protocol {protocol} trains on each of 'datasets', expected 'source' only with xd.")
    check_known("steps", values.get("steps", ()), STEPS)
    if protocol == "few_shot":
        check_known("steps of few_shot", values.get("steps", ()), ["train"])
        values["steps"] = ("train",)
    sweep = Sweep(name=name, **values)
    _check(sweep)
    return sweep


def _check(sweep: Sweep) -> None:
    """Refuse data sets, trainers and settings that are unknown, and runs that would share a folder."""
    known = sorted(p.stem for p in (CONFIGS / "datasets").glob("*.yaml"))
    check_known("datasets", sweep.datasets, known)
    check_known("source", sweep.source if sweep.protocol == "xd" else (), known)
    for trainer in sweep.trainers:
        if sweep.class_agnostic and not trainer.startswith("KDPL_"):
            raise SweepError(f"class_agnostic: '{trainer}' has no class-agnostic mode, expected only KDPL trainers.")
    steps = [step for run in runs_of(sweep) for step in run.steps]
    for step in {(step.config_file, step.datasets[0]): step for step in steps}.values():
        args = parse_args(step.command()[2:])
        build_cfg(args, args.dataset_config_file)
    if len({step.folder for step in steps}) < len(steps):
        raise SweepError("A trainer, data set, seed or number of shots is given twice: expected each once.")


def _read(given: Any, readers: Mapping[str, Callable], what: str, where: str) -> dict[str, Any]:
    """Return the values of a mapping, each read by the reader of its key."""
    if not isinstance(given, Mapping):
        raise SweepError(f"{what}: is '{given}', expected keys such as 'partition: gpu'.")
    for key in given:
        if key not in readers:
            expected = f"expected {', '.join(readers)}.{did_you_mean(key, readers)}"
            raise SweepError(f"'{key}' is not a key of {what} (in {where}), {expected}")
    prefix = "executor." if readers is _EXECUTOR else ""
    return {key: readers[key](value, f"{prefix}{key}") for key, value in given.items()}


def _names(value: Any, key: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    if not values or not all(isinstance(v, str) and v for v in values):
        raise SweepError(f"{key} is {value!r}, expected names or numbers, such as [1, 2, 3].")
    return tuple(values)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str):
        raise SweepError(f"{key} is {value!r}, expected one value.")
    return value


def _number(value: Any, key: str, at_least: int = 0) -> int:
    if not isinstance(value, str) or not value.isdecimal() or int(value) < at_least:
        raise SweepError(f"{key} is {value!r}, expected a whole number of at least {at_least}.")
    return int(value)


def _numbers(value: Any, key: str) -> tuple[int, ...]:
    return tuple(_number(v, key) for v in _names(value, key))


def _positive(value: Any, key: str) -> int:
    return _number(value, key, at_least=1)


def _flag(value: Any, key: str) -> bool:
    flags = {"true": True, "1": True, "false": False, "0": False}
    if str(value).lower() not in flags:
        raise SweepError(f"{key} is {value!r}, expected true or false.")
    return flags[value.lower()]


def _folder(value: Any, key: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(_text(value, key)))).absolute()


def _data(value: Any, key: str) -> str:
    return str(_folder(value, key)) if value else ""


def _memory(value: Any, key: str) -> str:
    if not re.fullmatch(r"\d+[KMGT]?", _text(value, key)):
        raise SweepError(f"{key} is '{value}', expected a number and K, M, G or T, such as 32G.")
    return value


def _gpus(value: Any, key: str) -> int:
    if _number(value, key) > 1:
        raise SweepError(f"{key} is {value}, expected 0 or 1: a run of a sweep is one process.")
    return int(value)


def minutes(value: Any, key: str = "executor.time") -> int:
    """Read a time as Slurm does: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S.

    Raises:
        SweepError: it is none of these, or 0.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", _text(value, key))
    if match is None:
        raise SweepError(f"{key} is '{value}', expected minutes, H:MM:SS or D-HH:MM:SS, such as 4:00:00.")
    days, *parts = match.groups()
    numbers = [int(part) for part in parts if part is not None]
    if days is None and len(numbers) < 3:  # minutes come first
        numbers = [0, *numbers]
    h, m, s = [*numbers, 0, 0][:3]
    total = math.ceil(int(days or 0) * 1440 + h * 60 + m + s / 60)
    if not total:
        raise SweepError(f"{key} is '{value}', expected more than nothing.")
    return total


def _options(value: Any, key: str) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else tuple(_pairs(value or {}, key))


def _pairs(given: Any, key: str, prefix: str = "") -> Iterable[str]:
    """Yield a mapping of settings as KEY, VALUE, KEY, VALUE."""
    if not isinstance(given, dict):
        raise SweepError(f"{key}: is {given!r}, expected settings such as 'OPTIM.MAX_EPOCH: 5'.")
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _pairs(value, key, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
            yield repr([literal(_python(v)) for v in value]) if isinstance(value, list) else _python(value)


def _python(value: str) -> str:
    """Spell YAML's true and false as the command line does."""
    return value.capitalize() if value in ("true", "false") else value


def _executor(value: Any, key: str) -> Resources:
    return Resources(**_read(value or {}, _EXECUTOR, key, "the sweep"))


_EXECUTOR = {
    "jobs": _number, "max_parallel": _positive, "restarts": _number, "time": minutes, "memory": _memory, "partition": _text,
    "account": _text, "qos": _text, "constraint": _text, "cpus": _positive, "gpus": _gpus, "setup": _names,
}  # fmt: skip
_SWEEP = {
    "protocol": _text, "trainers": _names, "datasets": _names, "source": _names, "steps": _names, "seeds": _numbers,
    "shots": _numbers, "config": _text, "class_agnostic": _flag, "data": _data, "output": _folder, "options": _options,
    "executor": _executor,
}  # fmt: skip
