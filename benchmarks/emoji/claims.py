"""Each claim about distilled prompts, shown or denied with its interval, from the runs of `run.py`.

Differences are paired by seed and class; an interval is the 95 % bootstrap over seeds and classes (kdpl.report --intervals).
"Shown" means that the interval lies above the claim's bound, "denied" that it lies below it, "open" that it holds it.
"""

import csv
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tabulate import tabulate

from kdpl.common.files import atomic_write
from kdpl.common.messages import signed
from kdpl.experiments.report.cells import Cell, Draws, average, difference, harmonic_mean
from kdpl.experiments.report.runs import Score, read_scores
from kdpl.experiments.report.tables import SHIFTED, cell_of

LEARNERS = ("CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP")
SOURCE = "EmojiAll"
ARTISTS = ("noto", "fluent")  # of the training
LEFT_OUT = ", artist left out"  # after the images that no training image is like
DOMAINS = SHIFTED[SOURCE]
CLAIMS = {
    "a": "without labels, learned prompts beat the student's best hand-written sentence on base classes",
    "b": "on new classes they are above zero-shot, and above the same learner with labels",
    "c": "across data sets and under shifts likewise",
    "d": "class-agnostic stays within a point of class-aware",
    "e": "eight fixed views are as good as fresh augmentation, within a point",
    "f": "a better teacher gives a better student",
}


SEARCHED = Path(__file__).with_name("search.csv")
NOTE = """
\\* With labels the search chose the smallest rate that it tried: on validation images larger ones are worse. At it CoOp's
prompts stay where they begin, so that the comparison is with the sentence.
"""
WHY = {  # variants that may tell why a claim fails
    "depth_1": "prompts at the input only",
    "temperature_2": "temperature 2",
    "loss_forward": "forward KL alone",
    "loss_reverse": "reverse KL alone",
}


NEW_SCENES = " ".join(ARTISTS)  # the domains of results on new scenes by the artists of the training


def on_domains(scores: Iterable[Score], domains: str) -> list[Score]:
    """Return the scores on some domains; they are those of one table, and no other domain is in it."""
    return [score for score in scores if score.tested.domains == domains]


@dataclass(frozen=True)
class Finding:
    """One compared pair: the claim, what is compared, on which images, and by how much the first is above the second."""

    claim: str
    pair: str
    images: str
    cell: Cell
    bound: float = 0.0
    date: str = ""  # of the last of its runs

    def bounds(self, draws: Draws) -> tuple[float, float]:
        bounds = self.cell.interval(draws)
        if bounds is None:
            raise SystemExit(f"{self.pair}, {self.images}: results lack the counts by class. Test these runs again.")
        return bounds

    def verdict(self, draws: Draws) -> str:
        low, high = self.bounds(draws)
        return "shown" if low > self.bound else "denied" if high < self.bound else "open"


class Results:
    """Scores, as those of one folder."""

    def __init__(self, scores: Sequence[Score]):
        self.scores = scores

    @classmethod
    def read(cls, folder: Path, domains: str = "") -> "Results":
        """Read the results of a folder on the artist who was left out, or on the new scenes of other artists."""
        try:
            return cls(on_domains(read_scores([folder])[0], domains))
        except FileNotFoundError:  # no run has ended there yet
            return cls([])

    def of_seeds(self, seeds: Container[int]) -> "Results":
        """Return the results of these seeds, and those that depend on no seed."""
        return Results([score for score in self.scores if score.method.is_zero_shot or score.seed in seeds])

    def cells(self, method: str, half: str) -> dict[str, Cell]:
        """Return by data set the accuracy on a class half ("base", "new" or "H"); a data set that lacks a run is left out."""
        if half == "H":
            base, new = (self.cells(method, each) for each in ("base", "new"))
            return {name: harmonic_mean(base[name], new[name]) for name in base if name in new}
        return self._by_dataset(s for s in self.of(method) if s.tested.classes == half)

    def transfer(self, method: str, domains: bool) -> dict[str, Cell]:
        """Return by target, or by domain, the accuracy of prompts learned on the source."""
        return self._by_dataset(
            s
            for s in self.of(method)
            if s.tested.classes == "all"
            and (s.tested.dataset in DOMAINS if domains else s.tested.dataset not in (SOURCE, *DOMAINS))
            and (s.trained is None or s.trained.dataset == SOURCE)
        )

    def of(self, method: str) -> list[Score]:
        return [score for score in self.scores if score.method.name == method]

    @staticmethod
    def _by_dataset(scores: Iterable[Score]) -> dict[str, Cell]:
        grouped: dict[str, list[Score]] = {}
        for score in scores:
            grouped.setdefault(score.tested.dataset, []).append(score)
        return {name: cell_of(group) for name, group in sorted(grouped.items())}


Cells = Callable[[Results, str], dict[str, Cell]]  # of a method, by data set


@dataclass(frozen=True)
class Side:
    """One side of a comparison: the results of a method on some images, by data set."""

    results: Results
    method: str
    cells: Cells

    def seeds(self) -> set[int] | None:
        """Return the seeds that it has on all its data sets; None if it depends on no seed.

        Seeds that a data set lacks are runs that are missing, so the side is empty until they are there.
        """
        seeds_of = [set(cell.values) for cell in self.cells(self.results, self.method).values() if cell.depends_on_seed]
        if not seeds_of:
            return None
        return seeds_of[0] if all(each == seeds_of[0] for each in seeds_of) else set()

    def of_seeds(self, seeds: Container[int]) -> dict[str, Cell]:
        return self.cells(self.results.of_seeds(seeds), self.method)


def mean_difference(a: Side, b: Side) -> Cell | None:
    """Return the difference of two means over the same data sets and the seeds that both have.

    Returns:
        None if one lacks a data set that the other has, or lacks a seed on some of its data sets, or no seed is common.
    """
    both = [seeds for side in (a, b) if (seeds := side.seeds()) is not None]
    seeds = set.intersection(*both) if both else set()
    first, second = a.of_seeds(seeds), b.of_seeds(seeds)
    if not first or first.keys() != second.keys() or (both and not seeds):
        return None
    return difference(average(list(first.values())), average([second[name] for name in first]))


def on(half: str) -> Cells:
    return lambda results, method: results.cells(method, half)


def transferred(domains: bool) -> Cells:
    return lambda results, method: results.transfer(method, domains)


def findings(folder: Path) -> list[Finding]:
    """Return what the runs under `folder` show; a pair is left out until both have the same data sets, and seeds in common."""
    main, fresh, weak, middle, sentence = (
        Results.read(folder / name) for name in ("main", "fresh", "teacher_weak", "teacher_middle", "sentence")
    )
    new_scenes, new_scenes_sentence = (Results.read(folder / name, NEW_SCENES) for name in ("main", "sentence"))
    changed = {words: Results.read(folder / variant) for variant, words in WHY.items()}
    compared: list[Finding] = []

    def add(
        claim: str, pair: str, images: str, cells: Cells, a: tuple[Results, str], b: tuple[Results, str], bound: float = 0.0
    ) -> None:
        if (cell := mean_difference(Side(*a, cells), Side(*b, cells))) is not None:
            date = max(score.time[:10] for results, method in (a, b) for score in results.of(method))
            compared.append(Finding(claim, pair, images, cell, bound, date))

    for images, results, other in (("base", new_scenes, new_scenes_sentence), (f"base{LEFT_OUT}", main, sentence)):
        for learner in LEARNERS:
            name = f"KDPL_{learner}"
            add("a", f"{name} minus best sentence", images, on("base"), (results, name), (other, "ZeroshotCLIP"))
    for claim, images, cells, results in (
        ("b", "new", on("new"), new_scenes),
        ("b", f"new{LEFT_OUT}", on("new"), main),
        ("c", "ten targets", transferred(False), main),
        ("c", "four domains", transferred(True), main),
    ):
        for learner in LEARNERS:
            name = f"KDPL_{learner}"
            for other, words in (("ZeroshotCLIP", "zero-shot"), (learner, learner)):
                add(claim, f"{name} minus {words}", images, cells, (results, name), (results, other))
    for learner in LEARNERS:
        name = f"KDPL_{learner}"
        for half in ("base", "new"):
            pair = f"{name}: class-agnostic minus class-aware"
            add("d", pair, f"{half}{LEFT_OUT}", on(half), (main, f"{name}-CA"), (main, name), bound=-1)
    for learner in LEARNERS:
        name = f"KDPL_{learner}"
        add("e", f"{name}: 8 views minus fresh", f"H{LEFT_OUT}", on("H"), (main, name), (fresh, name), bound=-1)
    for learner in LEARNERS:
        name = f"KDPL_{learner}"
        add("f", f"{name}: middle minus weak teacher", f"H{LEFT_OUT}", on("H"), (middle, name), (weak, name))
        add("f", f"{name}: strong minus middle teacher", f"H{LEFT_OUT}", on("H"), (main, name), (middle, name))
        for words, results in changed.items():
            for half in ("base", "new"):
                add("", f"{name}: {words} minus as above", f"{half}{LEFT_OUT}", on(half), (results, name), (main, name))
    return compared


def rows_of(compared: Sequence[Finding], draws: Draws) -> list[dict[str, str]]:
    """Return the findings as the rows of claims.csv."""
    rows = []
    for f in compared:
        numbers = dict(zip(("points", "low", "high"), (f"{v:.2f}" for v in (f.cell.mean, *f.bounds(draws))), strict=True))
        facts = {"seeds": str(len(f.cell.values)), "verdict": f.verdict(draws) if f.claim else "", "date": f.date}
        rows.append({"claim": f.claim, "pair": f.pair, "images": f.images, **numbers, **facts})
    return rows


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table for each claim, and one of the variants; baselines that the search kept from learning are marked."""
    parts, smallest = [], rf"minus ({'|'.join(smallest_rate())})$"
    for claim, words in {**CLAIMS, "": ""}.items():
        here = [row for row in rows if row["claim"] == claim]
        if here:
            title = f"({claim}) {words[0].upper()}{words[1:]}" if claim else "What else was tried"
            cells = [
                [
                    r["pair"] + (" *" if re.search(smallest, r["pair"]) else ""),
                    r["images"],
                    signed(float(r["points"]), 1),
                    f"{signed(float(r['low']), 1)} to {signed(float(r['high']), 1)}",
                    r["seeds"],
                    r["verdict"],
                ]
                for r in here
            ]
            table = tabulate(
                cells, ["pair", "images", "points", "95 % interval", "seeds", "claim"], "github", disable_numparse=True
            )
            parts.append(f"**{title}.**\n\n{table}\n{NOTE if ' * ' in table else ''}")
    return "\n".join(parts)


def smallest_rate() -> list[str]:
    """Return the learners to which the search gave, with labels, the smallest rate that it tried."""
    with open(SEARCHED, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    least = min(float(row["rate"]) for row in rows)
    return [row["trainer"] for row in rows if row["chosen"] and float(row["rate"]) == least and row["trainer"] in LEARNERS]


def summary(rows: Sequence[Mapping[str, str]]) -> str:
    """Return a table with a row for each kind of comparison: its differences over the learners, and their verdicts."""
    kinds: dict[tuple[str, str, str], list[Mapping[str, str]]] = {}
    for row in rows:
        if row["claim"]:
            kinds.setdefault((row["claim"], kind_of(row["pair"]), row["images"]), []).append(row)
    cells = []
    for (claim, kind, images), of in kinds.items():
        points = sorted(float(row["points"]) for row in of)
        verdicts = [str([row["verdict"] for row in of].count(verdict) or "") for verdict in ("shown", "open", "denied")]
        cells.append([f"({claim})", kind, images, f"{signed(points[0], 1)} to {signed(points[-1], 1)}", *verdicts])
    head = ["claim", "compared", "images", "points, by learner", "shown", "open", "denied"]
    return tabulate(cells, head, "github", disable_numparse=True) + "\n"


def kind_of(pair: str) -> str:
    """Return what is compared, without the learner's name."""
    _, learner, words = re.split(r"^KDPL_([A-Za-z]+)", pair)
    return "KDPL" + re.sub(rf"minus {learner}$", "minus labels", words)


def write_csv(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    with atomic_write(path, "w") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
