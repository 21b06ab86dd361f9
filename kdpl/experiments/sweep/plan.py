"""Read a sweep from a YAML file or from flags; refuse what is unknown, before anything is started."""

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from kdpl.config.command_line import CONFIGS, build_cfg, parse_args
from kdpl.config.defaults import literal, read_mapping
from kdpl.config.keys import ConfigError, check_choice
from kdpl.experiments.sweep.runs import STEPS, Range, Resources, Search, Sweep, runs_of

PROTOCOLS = ("base2new", "xd", "few_shot")


def read_sweep(file: str | os.PathLike, data: str = "", output: str = "") -> Sweep:
    """Read a sweep's file.

    Args:
        file: YAML; docs/performance.md has the keys.
        data, output: folders that replace those of the file.

    Raises:
        ConfigError: the file cannot be read, or a key, a value, or a setting of its `options` is unknown or does not fit.
    """
    folders = {key: folder for key, folder in (("data", data), ("output", output)) if folder}
    return sweep_of(read_mapping(file) | folders, Path(file).stem, f"'{file}'")


def sweep_of(content: Mapping[str, Any], name: str, where: str) -> Sweep:
    """Return the sweep that keys and values describe.

    Args:
        content: values as text, lists of texts or mappings; `options` also as a tuple KEY, VALUE, KEY, VALUE.
        name: its folder in OUTPUT/sweeps.
        where: the source of the keys, for errors.

    Raises:
        ConfigError: as `read_sweep`.
    """
    values = {"output": _folder("output"), **_read(content, Sweep, where)}
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
        if sweep.search and sweep.search.by == "agreement" and not trainer.startswith("KDPL_"):
            raise ConfigError(f"search.by: '{trainer}' has no teacher to agree with, expected only KDPL trainers, or accuracy.")
        if sweep.class_agnostic and not trainer.startswith("KDPL_"):
            raise ConfigError(f"class_agnostic: '{trainer}' has no class-agnostic mode, expected only KDPL trainers.")
    steps = [step for run in runs_of(sweep) for step in run.steps]
    for step in {(step.config_file, step.datasets[0]): step for step in steps}.values():
        for tried in ((), *_values_of(sweep.search)):
            args = parse_args(replace(step, options=(*step.options, *tried)).arguments(step.datasets))
            build_cfg(args, args.dataset_config_file)
    if len({step.folder for step in steps}) < len(steps):
        raise ConfigError("A trainer, data set, seed or number of shots is given twice: expected each once.")


def _values_of(search: Search | None) -> list[tuple[str, str]]:
    """Return every single setting that a search may try, of a range its ends."""
    space = search.space if search else {}
    ends = {key: (str(s.low), str(s.high)) if isinstance(s, Range) else s for key, s in space.items()}
    return [(key, value) for key, values in ends.items() for value in values]


def _read_search(given: Any, where: str) -> Search:
    if not isinstance(given, Mapping):
        raise ConfigError(f"search in {where} is {given!r}, expected 'by' and settings, such as 'OPTIM.LR: [0.002, 0.02]'.")
    space = {str(key): value for key, value in given.items() if key not in ("by", "trials")}
    check_choice("search.by:", str(given.get("by")), ("accuracy", "agreement"))
    for key, value in space.items():
        if key.startswith(("TEST.", "DATASET.")):
            raise ConfigError(f"search.{key}: data and test are no setting to choose, expected one of the training.")
        space[key] = _read_range(key, value) if isinstance(value, Mapping) else _list_of("".__add__)(value)
    trials, ranges = given.get("trials", "0"), [key for key, value in space.items() if isinstance(value, Range)]
    if not space or not str(trials).isdecimal() or bool(int(trials)) != bool(ranges):
        expected = f"how often to try, as {ranges[0]} is a range" if ranges else "lists of values, and no 'trials'"
        raise ConfigError(f"search in {where} has trials {trials!r} and settings {sorted(space)}, expected {expected}.")
    return Search(str(given["by"]), space, int(trials))


def _read_range(key: str, given: Mapping[str, Any]) -> Range:
    low, high = (literal(given.get(end)) for end in ("low", "high"))
    log = _BOOLEANS.get(str(given.get("log", "false")).lower())
    numbers = all(isinstance(value, int | float) for value in (low, high))
    if {*given} - {"low", "high", "log"} or log is None or not numbers or (log and low <= 0) or not low < high:
        raise ConfigError(f"search.{key} is {dict(given)}, expected such as {{low: 0.001, high: 0.1, log: true}}.")
    return Range(low, high, log)


def _read(given: Any, described: type, where: str, prefix: str = "") -> dict[str, Any]:
    """Return the values of a mapping whose keys are the fields of a dataclass, each as its field's type asks."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{prefix or where} is '{given}', expected keys such as 'partition: gpu'.")
    types, values = {field.name: field.type for field in fields(described) if field.name != "name"}, {}
    for key, value in given.items():
        check_choice(f"{prefix}KEY in {where}:", str(key), list(types))
        if key == "executor":
            values[key] = Resources(**_read(value or {}, Resources, where, "executor."))
        elif key == "search":
            values[key] = _read_search(value, where)
        elif key == "options":
            values[key] = value if isinstance(value, tuple) else tuple(_pairs(value or {}))
        else:
            expected, convert = _FORMS.get(key) or _FORMS[types[key]]
            try:
                values[key] = convert(value)
            except (TypeError, ValueError, KeyError, AttributeError):
                raise ConfigError(f"{prefix}{key} is {value!r}, expected {expected}.") from None
    return values


def _pairs(given: Any, prefix: str = "") -> Iterable[str]:
    """Yield a mapping of settings as KEY, VALUE, KEY, VALUE."""
    if not isinstance(given, dict):
        raise ConfigError(f"options is {given!r}, expected settings such as 'OPTIM.MAX_EPOCH: 5'.")
    for name, value in given.items():
        if isinstance(value, dict):
            yield from _pairs(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
            yield repr([literal(v) for v in value]) if isinstance(value, list) else str("" if value is None else value)


def _folder(given: str) -> Path:
    return Path(os.path.expanduser(os.path.expandvars(given))).absolute()


def _list_of(convert: Callable[[str], Any]) -> Callable[[Any], tuple]:
    def read(given: Any) -> tuple:
        values = given if isinstance(given, list) else [given]
        if not values or "" in values:
            raise ValueError
        return tuple(map(convert, values))

    return read


def _number(given: str) -> int:
    if not given.isdecimal():
        raise ValueError
    return int(given)


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_FORMS: dict[Any, tuple[str, Callable[[Any], Any]]] = {  # of a value, by its key or the type of its field
    str: ("one value", "".__add__),
    int: ("a whole number of at least 0", _number),
    bool: ("true or false", lambda given: _BOOLEANS[str(given).lower()]),
    Path: ("a folder", _folder),
    tuple[str, ...]: ("names, such as [CoOp, KDPL_CoOp]", _list_of("".__add__)),
    tuple[int, ...]: ("numbers, such as [1, 2, 3]", _list_of(_number)),
    "data": ("a folder", lambda given: str(_folder(given)) if given else ""),
}
