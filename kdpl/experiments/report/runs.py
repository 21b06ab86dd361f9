"""Find runs under output folders, and what each result was trained on and tested on."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kdpl.config.manifest import Manifest
from kdpl.experiments.report.apart import apart, one_name_each
from kdpl.experiments.report.logs import Log, as_list, read_logs
from kdpl.training.results import FILE_NAME, ResultsError, read_results, same_dataset

BEFORE = re.compile(r"before-\d+")  # folders of runs that were started over
# Settings that a configuration's name stands for; data set, seed, shots and folders differ between runs as they should.
_SHARED = ("INPUT.", "OPTIM.", "TRAINER.", "DATALOADER.TRAIN_X.")


@dataclass(frozen=True)
class Data:
    """Images of a data set: of which classes, and of which domains ("" for all)."""

    dataset: str
    classes: str = "all"
    domains: str = ""

    def __str__(self) -> str:
        return f"{self.dataset} ({self.domains})" if self.domains else self.dataset


@dataclass(frozen=True)
class Method:
    """A trainer with the settings in which its runs differ. The class-agnostic mode is its own method.

    Attributes:
        name: the trainer, with "-CA" in class-agnostic mode.
        config: stem of the trainer's configuration file, "" if not known.
        teacher: the teacher CLIPs, with sentences or prompts of their own; "" if there are none or they are not known.
        template: the hand-written sentence if it is not the data set's own.
        recipe: digests of its manifests without the seed, and of its images, if other runs would be in the same cells.
    """

    name: str
    config: str = ""
    teacher: str = ""
    template: str = ""
    recipe: str = ""

    @property
    def is_zero_shot(self) -> bool:
        return self.name.startswith("Zeroshot")

    @property
    def supervised_name(self) -> str:
        """Name of the method that learns the same prompts from labels."""
        return self.name.removeprefix("KDPL_").removesuffix("-CA")


@dataclass(frozen=True)
class Score:
    """The accuracy, in percent, of one method with one seed, trained on `trained` (None: not at all), on `tested`."""

    method: Method
    backbone: str
    shots: int
    seed: int
    trained: Data | None
    tested: Data
    accuracy: float
    time: str
    path: Path
    recipe: str = ""  # of the manifest; empty without one
    right: tuple[tuple[int, int], ...] = field(default=(), repr=False)  # of each class the images predicted right, and all
    class_names: str = ""  # digest; empty in older results
    images: str = ""  # likewise
    manifest: Manifest | None = field(default=None, compare=False, repr=False)

    @property
    def cell(self) -> tuple:
        """What the seeds of one cell of a table share."""
        return self.method, self.backbone, self.shots, self.trained, self.tested


@dataclass
class _Run:
    """An output folder as read; what its model was trained on is not known yet."""

    path: Path
    facts: dict[str, Any]  # of its results.json, or the like from its log
    log: Log
    settings: dict[str, str] = field(default_factory=dict)  # that all runs of a method should share

    @property
    def is_class_agnostic(self) -> bool:
        return bool(self.facts["class_agnostic"]) or any(part.endswith("-CA") for part in self.path.parts)

    @property
    def model_dir(self) -> str | None:
        """The folder of the run that trained the tested model, if this one did not."""
        return self.facts["model_dir"] or (self.log.arguments.get("model_dir") if self.log.evaluates_only else None)

    @property
    def shots(self) -> int:
        shots = int(self.facts["shots"])
        found = (re.fullmatch(r"shots_(\d+)|.*_(\d+)shots", part) for part in reversed(self.path.parts))
        return shots if shots > 0 else next((int(m[1] or m[2]) for m in found if m), shots)

    @property
    def config_name(self) -> str:
        """The stem of the trainer's configuration file, if need be by the name of the folder."""
        if self.facts["config_name"]:
            return self.facts["config_name"]
        if file := self.log.arguments.get("config_file"):
            return Path(file).stem
        parts = self.path.parts
        seeds = [i for i, part in enumerate(parts) if re.fullmatch(r"seed-?\d+", part)]
        return re.sub(r"_\d+shots$", "", parts[seeds[-1] - 1]) if seeds and seeds[-1] else ""


def read_scores(folders: Iterable[str | os.PathLike], split: str = "test") -> tuple[list[Score], list[str]]:
    """Read every run under the folders: its results.json, or else the result at the end of its log.txt.

    Of several results for the same thing the newest counts; if they differ, a note says so.

    Args:
        folders: output folders, of one run or of many.
        split: "test", or "val" for the validation images.

    Returns:
        The scores, and notes about what could not be used.

    Raises:
        FileNotFoundError: a folder does not exist, or there is no run under any of them.
    """
    notes: list[str] = []
    runs = [run for path in _run_folders(folders) if (run := _read_run(path, notes))]
    if not runs and not notes:
        listed = ", ".join(f"'{folder}'" for folder in folders)
        raise FileNotFoundError(f"There is no {FILE_NAME} and no log.txt under {listed}: no run has written there yet.")
    one_name_each([run.facts for run in runs])
    by_output_dir = {os.path.normpath(run.facts["output_dir"]): run for run in runs if run.facts["output_dir"]}
    scores: dict[tuple, Score] = {}
    for score in apart([score for run in runs for score in _scores(run, by_output_dir, split)], notes, split):
        key = (*score.cell, score.seed)
        other = scores.get(key)
        if other is not None and other.accuracy != score.accuracy:
            notes.append(f"Two results for the same: '{score.path}' and '{other.path}'. The newer one is used.")
        if other is None or score.time >= other.time:
            scores[key] = score
    return list(scores.values()), notes + _changed_settings(runs, {score.path for score in scores.values()})


def _changed_settings(runs: Iterable[_Run], used: set[Path]) -> list[str]:
    """Return notes about runs of one row that were trained with different settings under one configuration's name."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        if run.path in used and not run.log.evaluates_only and not run.facts["trainer"].startswith("Zeroshot"):
            student = f"{run.config_name or 'configuration not known'}, student {run.facts['backbone']}"
            for key, value in run.settings.items():
                values[f"{_trainer_name(run)} ({student})", key].add(value)
    return [
        f"{method}: runs differ in {key}, which is {' or '.join(sorted(found))}."
        for (method, key), found in values.items()
        if len(found) > 1
    ]


def _run_folders(folders: Iterable[str | os.PathLike]) -> list[Path]:
    found: dict[Path, Path] = {}
    for folder in folders:
        path = Path(folder)
        path = path.parent if path.is_file() else path
        if not path.is_dir():
            raise FileNotFoundError(f"There is no folder '{folder}'. Give output folders, such as output/base2new.")
        for root, directories, files in os.walk(path):
            directories[:] = sorted(name for name in directories if not BEFORE.fullmatch(name))
            if FILE_NAME in files or any(name.startswith("log.txt") for name in files):
                found[Path(root).resolve()] = Path(root)
    return list(found.values())


def _read_run(path: Path, notes: list[str]) -> _Run | None:
    log = read_logs(path)
    try:
        content = read_results(path / FILE_NAME)
    except FileNotFoundError:
        content = None
    except ResultsError as error:
        notes.append(f"{error} Until then the log is used." if log.accuracies else str(error))
        content = None
    if content is None:
        return _Run(path, content, log) if (content := log.results(path)) else None
    config = content["config"]
    config = _flat((yaml.safe_load(config) if isinstance(config, str) else config) or {})
    settings = {key: value for key, value in config.items() if key.startswith(_SHARED)}
    return _Run(path, content | {"template": config.get("DATASET.TEMPLATE", "")}, log, settings)


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested configuration as dotted keys with text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _scores(run: _Run, by_output_dir: dict[str, _Run], split: str) -> Iterator[Score]:
    facts = run.facts
    origin = by_output_dir.get(os.path.normpath(run.model_dir or "-"), run)
    method = Method(_trainer_name(run, origin), run.config_name, facts["teacher"] or "", facts["template"])
    manifest = facts.get("manifest")
    for entry in [e for e in facts["results"] if e["split"] == split]:
        tested = Data(entry["dataset"], entry["classes"], " ".join(entry["target_domains"]))
        same_source = replace(tested, domains=" ".join(entry["source_domains"]))
        yield Score(
            method,
            facts["backbone"],
            shots=0 if method.is_zero_shot else origin.shots,
            seed=facts["seed"],
            trained=None if method.is_zero_shot else _trained_on(run, origin, same_source),
            tested=tested,
            accuracy=entry["accuracy"],
            time=entry["time"],
            path=run.path,
            recipe=(manifest or {}).get("recipe", ""),
            right=_right_by_class(entry, run.path),
            class_names=entry.get("class_names", ""),
            images=entry.get("images", ""),
            manifest=Manifest.from_dict(manifest),
        )


def _right_by_class(entry: dict[str, Any], path: Path) -> tuple[tuple[int, int], ...]:
    """Return of each class the images predicted right and all of them; nothing for results that lack these.

    Raises:
        ResultsError: they contradict the accuracy.
    """
    pairs = [part.split("/") for part in str(entry.get("right_by_class", "")).split()]
    try:
        counts = tuple((int(right), int(images)) for right, images in pairs)
        of_all = 100 * sum(right for right, _ in counts) / sum(images for _, images in counts) if counts else None
    except (ValueError, ZeroDivisionError):
        problem = "is damaged: expected counts such as '3/4 2/4'"
        raise ResultsError(f"right_by_class of {entry['dataset']} in '{path}' {problem}. Test again.") from None
    if counts and abs(of_all - entry["accuracy"]) > 1e-3:
        raise ResultsError(
            f"right_by_class of {entry['dataset']} in '{path}' gives {of_all:.3f} %, expected the accuracy of "
            f"{entry['accuracy']:.3f} % that stands beside it: the file was changed. Test again."
        )
    return counts


def _trained_on(run: _Run, origin: _Run, tested: Data) -> Data:
    """Return what the model was trained on: by the training run, else by the folders' names in the forks' layout."""
    if not origin.log.evaluates_only and origin.log.config.get("DATASET.NAME"):
        config = origin.log.config
        domains = " ".join(as_list(config.get("DATASET.SOURCE_DOMAINS", "")))
        return Data(config["DATASET.NAME"], config.get("DATASET.SUBSAMPLE_CLASSES") or "all", domains)
    hints = [*Path(run.model_dir or "").parts, *reversed(run.path.parts)]
    for part in hints:
        if part in ("train_base", "test_base", "test_new"):
            return replace(tested, classes="base")
        if part == "evaluation" or part.startswith("cross_domain"):
            return Data("ImageNet")
        if part.startswith("evaluation_"):
            stem = part.removeprefix("evaluation_")
            return Data("".join(word.capitalize() for word in stem.split("_")))  # emoji_meals is EmojiMeals
        if same_dataset(part.removeprefix("train_"), "ImageNet"):
            return Data("ImageNet")
    return replace(tested, classes="base") if tested.classes == "new" else tested


def _trainer_name(*runs: _Run) -> str:
    """Return the name of a method by its run, and by that which trained it."""
    trainer = runs[0].facts["trainer"]
    # The published code says CoOp_KDPL, this one KDPL_CoOp.
    name = f"KDPL_{trainer.removesuffix('_KDPL')}" if trainer.endswith("_KDPL") else trainer
    return f"{name}-CA" if any(run.is_class_agnostic for run in runs) else name
