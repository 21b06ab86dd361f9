"""Choose settings before the runs of a sweep: a grid, or trials of Optuna, by the validation images alone."""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import fmean, pstdev

from tabulate import tabulate

from kdpl.common.files import atomic_write
from kdpl.common.safe_text import read_json
from kdpl.config.defaults import literal
from kdpl.config.keys import ConfigError
from kdpl.experiments.sweep.runs import Cell, Range, Run, Search, Sweep, cells_of, runs_of_trial
from kdpl.training.results import results_or_none

Do = Callable[[list[Run]], bool]  # do the runs that are not finished; return whether that was interrupted
RECORD = "search.json"
HEADINGS = ("trainer", "data set", "shots", "trial", "settings", "on validation images", "")


@dataclass(frozen=True)
class Trial:
    """Some settings, KEY VALUE KEY VALUE ..., and their runs, one for each seed."""

    number: int
    options: tuple[str, ...]
    runs: Sequence[Run]

    @property
    def settings(self) -> dict[str, str]:
        return dict(zip(self.options[::2], self.options[1::2], strict=True))

    def values(self) -> list[float]:
        """Return the accuracy, or the agreement, of each seed, in percent; none unless all seeds have ended."""
        steps = [step for run in self.runs for step in run.steps]
        if any(step.missing() for step in steps):
            return []
        entries = [(step, entry) for step in steps for entry in (results_or_none(step.folder) or {"results": []})["results"]]
        return [entry["accuracy"] for step, entry in entries if entry["split"] == step.split]


def choose(sweep: Sweep, do: Do) -> bool:
    """Do the trials of a sweep's search that are missing; return whether that was interrupted.

    What comes next depends on the trials before alone: a search that was stopped goes on as if it had not been.

    Raises:
        ConfigError: the record is of another search, or Optuna is not installed.
    """
    trials = read_trials(sweep)
    at_once = max(1, sweep.executor.jobs // len(sweep.seeds))
    while True:
        runs = [run for of_cell in trials.values() for trial in of_cell for run in trial.runs]
        if runs and do(runs):
            return True
        new = {cell: _next(sweep.search, trials[cell], at_once) for cell in trials}
        if not any(new.values()):
            return False
        for cell, proposed in new.items():
            first = len(trials[cell])
            trials[cell] += [_trial(sweep, cell, first + i, options) for i, options in enumerate(proposed)]
        record = {"search": _identity(sweep.search), "trials": [[t.options for t in of_cell] for of_cell in trials.values()]}
        with atomic_write(sweep.folder / RECORD, "w") as file:
            json.dump(record, file, indent=2)


def read_trials(sweep: Sweep) -> dict[Cell, list[Trial]]:
    """Return the trials begun so far, of every trainer, data set and number of shots.

    Raises:
        ConfigError: they are of another search.
    """
    cells, path = cells_of(sweep), sweep.folder / RECORD
    if not path.is_file():
        return {cell: [] for cell in cells}
    record = read_json(path)
    if record["search"] != _identity(sweep.search) or len(record["trials"]) != len(cells):
        raise ConfigError(f"'{path}' is of another search: move '{sweep.folder}' aside.")
    pairs = zip(cells, record["trials"], strict=True)
    return {cell: [_trial(sweep, cell, n, tuple(o)) for n, o in enumerate(options)] for cell, options in pairs}


def best_of(sweep: Sweep, trials: Mapping[Cell, Sequence[Trial]]) -> dict[Cell, Trial]:
    """Return the trial with the highest mean, by what it is of; the first of equal ones, none where none has ended."""
    ended = {cell: [trial for trial in of_cell if trial.values()] for cell, of_cell in trials.items()}
    return {cell: max(some, key=lambda t: fmean(t.values())) for cell, some in ended.items() if some}


def write_choice(sweep: Sweep) -> str:
    """Write all trials, with the chosen ones marked, as search.csv and search.txt into the sweep's folder; return the text."""
    trials, lines = read_trials(sweep), []
    best = best_of(sweep, trials)
    for cell, of_cell in trials.items():
        for trial in of_cell:
            values = trial.values()
            settings = ", ".join(f"{key} {value}" for key, value in trial.settings.items())
            result = f"{fmean(values):.2f} ± {pstdev(values):.2f}" if values else "failed"
            lines.append((*cell, trial.number, settings, result, "chosen" if best.get(cell) is trial else ""))
    with atomic_write(sweep.folder / "search.csv", "w", newline="") as file:
        csv.writer(file).writerows([HEADINGS, *lines])
    what = "agreement with the teacher" if sweep.search.by == "agreement" else "accuracy"
    text = f"Chosen by {what} on validation images, in percent\n\n{tabulate(lines, HEADINGS, disable_numparse=True)}\n"
    with atomic_write(sweep.folder / "search.txt", "w") as file:
        file.write(text)
    return text


def _identity(search: Search) -> str:
    return f"{search.by}: {search.space}"


def _trial(sweep: Sweep, cell: Cell, number: int, options: tuple[str, ...]) -> Trial:
    return Trial(number, options, runs_of_trial(sweep, cell, number, options))


def _next(search: Search, trials: Sequence[Trial], at_once: int) -> list[tuple[str, ...]]:
    """Return the options of the trials that come after these; none, if all are done."""
    if search.trials:
        at_once = min(at_once, search.trials - len(trials))
        return _proposed(search, trials, at_once) if at_once > 0 else []
    if trials:
        return []
    points = product(*search.space.values())
    return [tuple(word for pair in zip(search.space, point, strict=True) for word in pair) for point in points]


def _proposed(search: Search, trials: Sequence[Trial], n: int) -> list[tuple[str, ...]]:
    try:
        import optuna
    except ModuleNotFoundError:
        raise ConfigError("A search over a range needs Optuna: pip install 'kdpl[sweep]', or give lists of values.") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    spaces = {key: _distribution(space) for key, space in search.space.items()}
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=len(trials)))
    for trial in trials:
        drawn = {key: literal(v) if isinstance(search.space[key], Range) else v for key, v in trial.settings.items()}
        values = trial.values()
        state = optuna.trial.TrialState.COMPLETE if values else optuna.trial.TrialState.FAIL
        value = fmean(values) if values else None
        study.add_trial(optuna.trial.create_trial(params=drawn, distributions=spaces, value=value, state=state))
    proposals = [study.ask(spaces).params for _ in range(n)]
    return [tuple(word for key, value in drawn.items() for word in (key, str(value))) for drawn in proposals]


def _distribution(space: tuple[str, ...] | Range):
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if not isinstance(space, Range):
        return CategoricalDistribution(space)
    whole = isinstance(space.low, int) and isinstance(space.high, int)
    return (IntDistribution if whole else FloatDistribution)(space.low, space.high, log=space.log)
