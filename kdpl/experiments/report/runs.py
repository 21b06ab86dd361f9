"""Find runs under output folders, and what each result was trained on and tested on."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from kdpl.training.results import FILE_NAME, ResultsError, read_results

BEFORE = re.compile(r"before-\d+")  # folders of runs that were started over


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
    class_names: str = ""  # digest
    images: str = ""  # likewise

    @property
    def cell(self) -> tuple:
        """What the seeds of one cell of a table share."""
        return self.method, self.backbone, self.shots, self.trained, self.tested


class _Run:
    """An output folder as read; what its model was trained on is not known yet."""

    def __init__(self, path: Path):
        self.path = path
        self.facts = read_results(path)
        config = self.facts["config"]
        self.config = _flat((yaml.safe_load(config) if isinstance(config, str) else config) or {})  # dotted keys to text
        self.name = f"{self.facts['trainer']}-CA" if self.facts["class_agnostic"] else self.facts["trainer"]


def read_scores(folders: Iterable[str | os.PathLike], split: str = "test") -> tuple[list[Score], list[str]]:
    """Read the results.json of every run under the folders.

    Of several results for the same thing the newest counts; if they differ, a note says so.

    Args:
        folders: output folders, of one run or of many.
        split: "test", or "val" for the validation images.

    Returns:
        The scores, and notes about what could not be used.

    Raises:
        FileNotFoundError: a folder does not exist, or there is no run under any of them.
        ResultsError: counts by class contradict the accuracy.
    """
    notes: list[str] = []
    runs = [run for path in _run_folders(folders) if (run := _read_run(path, notes))]
    if not runs and not notes:
        listed = ", ".join(f"'{folder}'" for folder in folders)
        raise FileNotFoundError(f"There is no {FILE_NAME} under {listed}: no test has finished there yet.")
    # By the folder that it wrote to, and by where that lies now.
    trainings = {os.path.abspath(run.facts["output_dir"]): run for run in runs if run.facts.get("output_dir")}
    trainings |= {str(run.path.resolve()): run for run in runs}
    all_scores = [score for run in runs for score in _scores(run, trainings, split, notes)]
    scores: dict[tuple, Score] = {}
    for score in _in_cells(all_scores, notes, split):
        key = (*score.cell, score.seed)
        other = scores.get(key)
        if other is not None and other.accuracy != score.accuracy:
            notes.append(f"Two results for the same: '{score.path}' and '{other.path}'. The newer one is used.")
        if other is None or score.time >= other.time:
            scores[key] = score
    return list(scores.values()), notes


def _in_cells(scores: Iterable[Score], notes: list[str], split: str) -> list[Score]:
    """Return the scores, with separate methods for those of one cell that differ in more than the seed.

    Differing test images separate too; validation images are drawn by the seed.
    """
    cells: dict[tuple, list[Score]] = defaultdict(list)
    for score in scores:
        cells[score.cell].append(score)
    separated, reported = [], set()
    for cell, members in cells.items():
        name = f"{cell[0].name} on {cell[-1]}"
        if several_recipes := len({score.recipe for score in members}) > 1:
            reported.add(f"{name}: runs with different manifests, in rows of their own (see manifest.json in each).")
        if several_images := split == "test" and len({score.images for score in members}) > 1:
            reported.add(f"{name}: results on different images, in rows of their own (see 'images' in results.json).")
        for score in members:
            parts = [score.recipe or "no manifest"] * several_recipes
            parts += [f"images {score.images or 'not recorded'}"] * several_images
            separated.append(replace(score, method=replace(score.method, recipe=", ".join(parts))))
    notes += sorted(reported)
    return separated


def _run_folders(folders: Iterable[str | os.PathLike]) -> list[Path]:
    by_place: dict[Path, Path] = {}
    for folder in folders:
        path = Path(folder)
        path = path.parent if path.is_file() else path
        if not path.is_dir():
            raise FileNotFoundError(f"There is no folder '{folder}'. Give output folders, such as output/base2new.")
        for root, directories, files in os.walk(path):
            of_sweep = Path(root).parent.name == "sweeps"  # whose trials are of other settings than its runs
            directories[:] = sorted(n for n in directories if not (BEFORE.fullmatch(n) or (of_sweep and n == "trials")))
            if FILE_NAME in files:
                by_place[Path(root).resolve()] = Path(root)
    return list(by_place.values())


def _read_run(path: Path, notes: list[str]) -> _Run | None:
    try:
        return _Run(path)
    except ResultsError as error:
        notes.append(str(error))
        return None


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, str]:
    """Return a nested configuration as dotted keys with text."""
    flat: dict[str, str] = {}
    for key, value in config.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return flat


def _scores(run: _Run, trainings: dict[str, _Run], split: str, notes: list[str]) -> Iterator[Score]:
    facts = run.facts
    model_dir = facts["model_dir"] and os.path.abspath(facts["model_dir"])
    origin = trainings.get(model_dir, run) if model_dir else run
    name = origin.name if origin.name == f"{run.name}-CA" else run.name  # a test need not say how its prompts were learned
    method = Method(name, run.facts["config_name"], facts["teacher"] or "", run.config.get("DATASET.TEMPLATE", ""))
    for entry in [e for e in facts["results"] if e["split"] == split]:
        tested = Data(entry["dataset"], entry["classes"], " ".join(entry["target_domains"]))
        trained = None
        if not method.is_zero_shot:
            trained = _trained_on(origin)
            if trained is None:
                notes.append(
                    f"'{run.path}' tests prompts of '{facts['model_dir']}', and what these were trained on is not known: give "
                    "that folder too."
                )
                continue
        yield Score(
            method,
            facts["backbone"],
            shots=0 if method.is_zero_shot else origin.facts["shots"],
            seed=facts["seed"],
            trained=trained,
            tested=tested,
            accuracy=entry["accuracy"],
            time=entry["time"],
            path=run.path,
            recipe=(facts["manifest"] or {}).get("recipe", ""),
            right=_right_by_class(entry, run.path),
            class_names=entry.get("class_names", ""),
            images=entry.get("images", ""),
        )


def _right_by_class(entry: dict[str, Any], path: Path) -> tuple[tuple[int, int], ...]:
    """Return of each class the images predicted right and all of them; nothing for results that lack these.

    Raises:
        ResultsError: they are damaged.
    """
    pairs = [part.split("/") for part in str(entry.get("right_by_class", "")).split()]
    try:
        return tuple((int(right), int(images)) for right, images in pairs)
    except ValueError:
        problem = "is damaged: expected counts such as '3/4 2/4'"
        raise ResultsError(f"right_by_class of {entry['dataset']} in '{path}' {problem}. Test again.") from None


def _trained_on(origin: _Run) -> Data | None:
    """Return what a training run learned from; None if it is not known, as that run is missing."""
    name = origin.config.get("DATASET.NAME")
    if origin.facts["model_dir"] or not name:
        return None
    domains = yaml.safe_load(origin.config.get("DATASET.SOURCE_DOMAINS", "")) or ()
    return Data(name, origin.config.get("DATASET.SUBSAMPLE_CLASSES") or "all", " ".join(domains))
