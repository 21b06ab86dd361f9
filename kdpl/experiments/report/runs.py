"""Find runs under output folders, and what each result was trained on and tested on."""

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

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
    class_names: str = ""  # digest
    images: str = ""  # likewise

    @property
    def cell(self) -> tuple:
        """What the seeds of one cell of a table share."""
        return self.method, self.backbone, self.shots, self.trained, self.tested


@dataclass
class _Run:
    """An output folder as read; what its model was trained on is not known yet."""

    path: Path
    facts: dict[str, Any]  # of its results.json
    config: dict[str, str]  # dotted keys to text

    @property
    def name(self) -> str:
        agnostic = self.facts["class_agnostic"] or any(part.endswith("-CA") for part in self.path.parts)
        return f"{self.facts['trainer']}-CA" if agnostic else self.facts["trainer"]

    @property
    def shots(self) -> int:
        shots = int(self.facts["shots"])
        found = (re.fullmatch(r"shots_(\d+)|.*_(\d+)shots", part) for part in reversed(self.path.parts))
        return shots if shots > 0 else next((int(m[1] or m[2]) for m in found if m), shots)

    @property
    def config_name(self) -> str:
        """The stem of the trainer's configuration file, if need be by the name of the folder."""
        parts = self.path.parts
        seeds = [i for i, part in enumerate(parts) if re.fullmatch(r"seed-?\d+", part)]
        by_folder = re.sub(r"_\d+shots$", "", parts[seeds[-1] - 1]) if seeds and seeds[-1] else ""
        return self.facts["config_name"] or by_folder


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
    found = [score for run in runs for score in _scores(run, trainings, split, notes)]
    scores: dict[tuple, Score] = {}
    for score in _in_cells(found, notes, split):
        key = (*score.cell, score.seed)
        other = scores.get(key)
        if other is not None and other.accuracy != score.accuracy:
            notes.append(f"Two results for the same: '{score.path}' and '{other.path}'. The newer one is used.")
        if other is None or score.time >= other.time:
            scores[key] = score
    return list(scores.values()), notes + _changed_settings(runs, {score.path for score in scores.values()})


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


def _changed_settings(runs: Iterable[_Run], used: set[Path]) -> list[str]:
    """Return notes about runs of one row that were trained with different settings under one configuration's name."""
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        if run.path in used and not run.facts["model_dir"] and not run.facts["trainer"].startswith("Zeroshot"):
            student = f"{run.config_name or 'configuration not known'}, student {run.facts['backbone']}"
            for key, value in run.config.items():
                if key.startswith(_SHARED):
                    values[f"{run.name} ({student})", key].add(value)
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
            if FILE_NAME in files:
                found[Path(root).resolve()] = Path(root)
    return list(found.values())


def _read_run(path: Path, notes: list[str]) -> _Run | None:
    try:
        facts = read_results(path)
    except ResultsError as error:
        notes.append(str(error))
        return None
    config = facts["config"]
    return _Run(path, facts, _flat((yaml.safe_load(config) if isinstance(config, str) else config) or {}))


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
    method = Method(name, run.config_name, facts["teacher"] or "", run.config.get("DATASET.TEMPLATE", ""))
    for entry in [e for e in facts["results"] if e["split"] == split]:
        tested = Data(entry["dataset"], entry["classes"], " ".join(entry["target_domains"]))
        trained = None
        if not method.is_zero_shot:
            trained = _trained_on(run, origin, replace(tested, domains=" ".join(entry["source_domains"])))
            if trained is None:
                notes.append(
                    f"'{run.path}' tests prompts of '{facts['model_dir']}', and what these were trained on is not known: give "
                    "that folder too."
                )
                continue
        yield Score(
            method,
            facts["backbone"],
            shots=0 if method.is_zero_shot else origin.shots,
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


def _trained_on(run: _Run, origin: _Run, tested: Data) -> Data | None:
    """Return what the model was trained on: by the training run, else by the folders' names; None if neither says it."""
    if not origin.facts["model_dir"] and (name := origin.config.get("DATASET.NAME")):
        domains = yaml.safe_load(origin.config.get("DATASET.SOURCE_DOMAINS", "")) or ()
        return Data(name, origin.config.get("DATASET.SUBSAMPLE_CLASSES") or "all", " ".join(domains))
    for part in (*Path(run.facts["model_dir"] or "").parts, *reversed(run.path.parts)):
        if part in ("train_base", "test_base", "test_new"):
            return replace(tested, classes="base")
        if part == "evaluation" or same_dataset(part.removeprefix("train_"), "ImageNet"):
            return Data("ImageNet")
        if part.startswith("evaluation_"):
            stem = part.removeprefix("evaluation_")
            return Data("".join(word.capitalize() for word in stem.split("_")))  # emoji_meals is EmojiMeals
    if run.facts["model_dir"]:
        return None
    return replace(tested, classes="base") if tested.classes == "new" else tested
