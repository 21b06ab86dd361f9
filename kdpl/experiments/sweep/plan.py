"""Read a sweep from a YAML file or from flags; refuse what is unknown, before anything is started."""

import math
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from kdpl.common.messages import did_you_mean
from kdpl.config.command_line import CONFIGS, build_cfg, parse_args
from kdpl.config.keys import ConfigError, check_choice
from kdpl.config.merging import literal, read_mapping
from kdpl.experiments.sweep.runs import STEPS, Resources, Sweep, runs_of

PROTOCOLS = ("base2new", "xd", "few_shot")


def read_sweep(file: str | os.PathLike, data: str = "", output: str = "") -> Sweep:
    """Read a sweep's file.

    Args:
        file: YAML; docs/sweeps.md has the keys.
        data, output: folders that replace those of the file.

    Raises:
        ConfigError: the file cannot be read, or a key, a value, or a setting of its `options` is unknown or does not fit.
    """
    content = read_mapping(file)
    folders = {key: folder for key, folder in (("data", data), ("output", output)) if folder}
    return sweep_of(content | folders, Path(file).stem, f"'{file}'")


def sweep_of(content: Mapping[str, Any], name: str, where: str) -> Sweep:
    """Return the sweep that keys and values describe.

    Args:
        content: values as text, lists of texts or mappings; `options` also as a tuple KEY, VALUE, KEY, VALUE.
        name: its folder in OUTPUT/sweeps.
        where: the source of the keys, for errors.

    Raises:
        ConfigError: as `read_sweep`.
    """
    values = {"output": _folder("output"), **_read(content, Sweep, "a sweep", where)}
    for key in ("protocol", "trainers", "datasets"):
        if not values.get(key):
            raise ConfigError(f"'{key}' is missing in {where}, expected it to say what to run.")
    protocol = values["protocol"]
    check_choice("protocol:", protocol, PROTOCOLS)
    if "source" in values and protocol != "xd":
        raise ConfigError(f"source: protocol {protocol} trains on each of 'datasets', expected 'source' only with xd.")
    possible = {"few_shot": STEPS[:1], "xd": STEPS[:2]}.get(protocol, STEPS)
    for step in values.get("steps", ()):
        check_choice(f"steps of {protocol}:", step, possible)
    if protocol == "few_shot":
        values["steps"] = possible
    sweep = Sweep(name=name, **values)
    _check(sweep)
    return sweep


def _check(sweep: Sweep) -> None:
    """Refuse data sets, trainers and settings that are unknown, and runs that would share a folder."""
    known = sorted(p.stem for p in (CONFIGS / "datasets").glob("*.yaml"))
    for key, names in (("datasets:", sweep.datasets), ("source:", sweep.source if sweep.protocol == "xd" else ())):
        for name in names:
            check_choice(key, name, known)
    for trainer in sweep.trainers:
        if sweep.class_agnostic and not trainer.startswith("KDPL_"):
            raise ConfigError(f"class_agnostic: '{trainer}' has no class-agnostic mode, expected only KDPL trainers.")
    if sweep.executor.warm and sweep.executor.gpus:
        raise ConfigError("executor.warm: runs fork from one Python, expected 'gpus: 0' with it. Leave one of the two out.")
    steps = [step for run in runs_of(sweep) for step in run.steps]
    for step in {(step.config_file, step.datasets[0]): step for step in steps}.values():
        args = parse_args(step.command()[2:])
        build_cfg(args, args.dataset_config_file)
    if len({step.folder for step in steps}) < len(steps):
        raise ConfigError("A trainer, data set, seed or number of shots is given twice: expected each once.")


def _read(given: Any, described: type, what: str, where: str) -> dict[str, Any]:
    """Return the values of a mapping whose keys are the fields of a dataclass, each as its field's type asks."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{what}: is '{given}', expected keys such as 'partition: gpu'.")
    types = {f.name: f.type for f in fields(described) if f.name not in ("name", "look")}
    for key in given:
        if key not in types:
            expected = f"expected {', '.join(types)}.{did_you_mean(str(key), types)}"
            raise ConfigError(f"'{key}' is not a key of {what} (in {where}), {expected}")
    prefix = "executor." if described is Resources else ""
    return {key: _value(types[key], value, f"{prefix}{key}") for key, value in given.items()}


def _value(kind: Any, given: Any, key: str) -> Any:
    """Return a value that is given as text, a list of texts, or a mapping."""
    if kind is Resources:
        return Resources(**_read(given or {}, Resources, key, "the sweep"))
    if key == "options":
        return given if isinstance(given, tuple) else tuple(_pairs(given or {}, key))
    if kind in (tuple[str, ...], tuple[int, ...]):
        values = given if isinstance(given, list) else [given]
        if not values or not all(isinstance(v, str) and v for v in values):
            raise ConfigError(f"{key} is {given!r}, expected names or numbers, such as [1, 2, 3].")
        return tuple(_value(get_args(kind)[0], v, key) for v in values)
    pattern, expected, read = _FORMS.get(key) or _FORMS[kind]
    given = str(given) if isinstance(given, bool) else given or ""
    if not isinstance(given, str) or not re.fullmatch(pattern, given):
        raise ConfigError(f"{key} is {given!r}, expected {expected}.")
    return read(given)


def _folder(text: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(text))).absolute()


def minutes(text: str) -> int:
    """Return a time that is written as Slurm does, in minutes, rounded up: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, _, clock = text.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    if not days and len(parts) < 3:  # minutes come first
        parts = [0, *parts]
    h, m, s = [*parts, 0, 0][:3]
    return int(days or 0) * 1440 + h * 60 + m + math.ceil(s / 60)


def _pairs(given: Any, key: str, prefix: str = "") -> Iterable[str]:
    """Yield a mapping of settings as KEY, VALUE, KEY, VALUE."""
    if not isinstance(given, dict):
        raise ConfigError(f"{key}: is {given!r}, expected settings such as 'OPTIM.MAX_EPOCH: 5'.")
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _pairs(value, key, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
            yield repr([literal(v) for v in value]) if isinstance(value, list) else str("" if value is None else value)


# How a value is written, by its key or else its type: a pattern, what an error expects, and what it becomes.
_POSITIVE = ("0*[1-9][0-9]*", "a whole number of at least 1", int)
_FORMS: dict[Any, tuple[str, str, Callable[[str], Any]]] = {
    str: (r"[^\0]*", "one value", str),
    int: ("[0-9]+", "a whole number of at least 0", int),
    bool: ("(?i:true|false|1|0)", "true or false", lambda text: text.lower() in ("true", "1")),
    Path: (r"[^\0]+", "a folder", _folder),
    "data": (r"[^\0]*", "a folder", lambda text: str(_folder(text)) if text else ""),
    "executor.max_parallel": _POSITIVE,
    "executor.cpus": _POSITIVE,
    "executor.time": (
        r"(?=.*[1-9])([0-9]+-[0-9]+(:[0-9]+){0,2}|[0-9]+(:[0-9]+){0,2})",
        "minutes, H:MM:SS or D-HH:MM:SS, such as 4:00:00, and more than nothing",
        minutes,
    ),
    "executor.memory": ("[0-9]+[KMGT]?", "a number and K, M, G or T, such as 32G", str),
    "executor.gpus": ("[01]", "0 or 1: a run of a sweep is one process", int),
}
