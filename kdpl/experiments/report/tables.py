"""The tables of the four protocols, made of scores: base-to-new, cross-dataset, domain generalisation, few-shot."""

import csv
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from kdpl.config.keys import is_distilled
from kdpl.experiments.report.cells import ANY_SEED, Cell, average, difference, harmonic_mean
from kdpl.experiments.report.intervals import Counts, Replicates
from kdpl.experiments.report.runs import Data, Method, Score

SOURCE = "ImageNet"
SHIFTED = {  # data sets of a source's classes under other distributions
    SOURCE: ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"),
    "EmojiAll": ("EmojiV2", "EmojiSketch", "EmojiA", "EmojiR"),
}
PAPER_SHOTS = 16
PAPER_TEACHER = "ViT-H-14-quickgelu"
AVERAGE = "average"
SHIFT = "domain generalisation"

_DATASET_ORDER = (
    SOURCE, "Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101", "FGVCAircraft", "SUN397",
    "DescribableTextures", "EuroSAT", "UCF101", *SHIFTED[SOURCE], *SHIFTED["EmojiAll"],
)  # fmt: skip
_METHOD_ORDER = ("ZeroshotCLIP", "ZeroshotCLIP2", "ZeroshotTeacher", "CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP")


Cells = tuple[Cell | None, ...]


@dataclass(frozen=True)
class Row:
    """A row: its labels, then its cells; `kind` is "method", "difference" or "published"."""

    labels: tuple[str, ...]
    cells: Cells
    kind: str = "method"


@dataclass
class Table:
    """A table of one protocol.

    Attributes:
        protocol: "base-to-new", "cross-dataset", "domain generalisation" or "few-shot".
        subject: student, source and shots, as far as the whole table shares them.
        labels: the headings of the label columns.
        columns: the headings of the cells.
        seeds: the seeds that every cell should have.
    """

    protocol: str
    subject: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    seeds: tuple[int, ...]
    rows: list[Row] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.protocol[0].upper()}{self.protocol[1:]}: {self.subject}"


def all_tables(scores: Iterable[Score], seeds: Sequence[int] = ()) -> list[Table]:
    """Return the tables that the scores allow.

    Args:
        seeds: the seeds that every cell should have; by default those that any score of the same table has.
    """
    scores = sorted(scores, key=lambda score: (_method_key(score.method), score.seed))
    tables = []
    for backbone in sorted({score.backbone for score in scores}):
        of_student = [score for score in scores if score.backbone == backbone]
        for protocol in (_base_to_new, _transfers, _few_shot):
            tables += protocol(of_student, backbone, seeds)
    return [table for table in tables if table.rows]


def _base_to_new(scores: list[Score], backbone: str, seeds: Sequence[int]) -> list[Table]:
    halves = [s for s in scores if s.tested.classes != "all" and (s.trained is None or _trained_on_base(s))]
    tables = []
    for shots in sorted({score.shots for score in halves if score.trained}) or [0]:
        trained = {score.tested.dataset for score in halves if score.trained and score.shots == shots}
        chosen = [s for s in halves if (s.shots == shots if s.trained else not trained or s.tested.dataset in trained)]
        rows = _dataset_rows(
            chosen, lambda s: s.tested.classes, ("base", "new"), finish=lambda pair: (*pair, harmonic_mean(*pair))
        )
        columns, subject = ("base", "new", "H"), _subject(backbone, shots)
        tables.append(Table("base-to-new", subject, ("data set", "method"), columns, _seeds(chosen, seeds), rows))
    return tables


def _few_shot(scores: list[Score], backbone: str, seeds: Sequence[int]) -> list[Table]:
    whole = [s for s in scores if s.tested.classes == "all" and s.trained in (None, s.tested)]
    sources = {s.trained for s in scores if s.tested.classes == "all" and s.trained not in (None, s.tested)}
    shots_of: dict[Data, set[int]] = {}
    for score in whole:
        if score.trained or not any(s.trained for s in scores):
            shots_of.setdefault(score.tested, set()).add(score.shots)
    # A source with one number of shots stands in the table of its transfer already.
    shown = {data for data, n in shots_of.items() if len(n) > 1 or (data not in sources and data != Data(SOURCE))}
    chosen = [score for score in whole if score.tested in shown]
    shots = sorted({score.shots for score in chosen})
    subject = f"student {backbone}, all classes, by training images of each class"
    rows = _dataset_rows(chosen, lambda s: s.shots, shots)
    return [Table("few-shot", subject, ("data set", "method"), tuple(map(str, shots)), _seeds(chosen, seeds), rows)]


def _dataset_rows(
    scores: list[Score], key: Callable[[Score], object], columns: Sequence[object], finish: Callable[[Cells], Cells] = tuple
) -> list[Row]:
    """Return rows for every data set and method, those of the average over data sets first.

    Args:
        key: of a score, equal to the column that it belongs in.
        finish: adds the columns that are computed from the others.
    """
    methods = _methods(scores)
    blocks: dict[str, dict[Method, Cells]] = {}
    for dataset in sorted({str(score.tested) for score in scores}, key=_dataset_key):
        here = [score for score in scores if str(score.tested) == dataset]
        blocks[dataset] = {
            method: tuple(cell_of(s for s in here if s.method == method and key(s) == column) for column in columns)
            for method in methods
        }
    rows = []
    if len(blocks) > 1:
        averages = {m: tuple(map(average, zip(*(block[m] for block in blocks.values()), strict=True))) for m in methods}
        rows += _rows({method: finish(cells) for method, cells in averages.items()}, (AVERAGE,))
    for dataset, block in blocks.items():
        rows += _rows({method: finish(cells) for method, cells in block.items()}, (dataset,))
    return rows


def _transfers(scores: list[Score], backbone: str, seeds: Sequence[int]) -> list[Table]:
    """Return the tables of prompts trained on all classes of a source and tested elsewhere."""
    whole = [s for s in scores if s.tested.classes == "all" and (s.trained is None or s.trained.classes == "all")]
    tables = []
    origins = {(s.trained, s.shots) for s in whole if s.trained}
    for source, shots in sorted(origins, key=lambda o: (_dataset_key(str(o[0])), o[1])):
        targets = {s.tested for s in whole if (s.trained, s.shots) == (source, shots) and s.tested != source}
        shifted = {t for t in targets if t.dataset == source.dataset or t.dataset in SHIFTED.get(str(source), ())}
        for protocol, chosen in (("cross-dataset", targets - shifted), (SHIFT, shifted)):
            # The paper's table begins with the source itself, so it is worth showing alone.
            if chosen or (protocol == SHIFT and source == Data(SOURCE)):
                columns = [source, *sorted(chosen, key=lambda data: _dataset_key(str(data)))]
                tables.append(_transfer_table(protocol, whole, columns, backbone, shots, seeds))
    return tables


def _transfer_table(
    protocol: str, whole: list[Score], columns: list[Data], backbone: str, shots: int, seeds: Sequence[int]
) -> Table:
    """Return the table of prompts trained on the first of the columns."""
    source, *targets = columns
    chosen = [s for s in whole if s.tested in columns and (s.trained is None or (s.trained, s.shots) == (source, shots))]
    by_method = {}
    for method in _methods(chosen):
        cells = [cell_of(s for s in chosen if s.method == method and s.tested == column) for column in columns]
        by_method[method] = (*cells, average(cells[1:]))
    paper = {}
    if protocol == SHIFT and source == Data(SOURCE) and shots == PAPER_SHOTS:
        paper = {m: _published_row(backbone, m, targets) for m in by_method}
    headings = (f"{source} (source)", *map(str, targets), AVERAGE)
    subject, rows = _subject(backbone, shots, source), _rows(by_method, published=paper)
    return Table(protocol, subject, ("method",), headings, _seeds(chosen, seeds), rows)


def _rows(
    by_method: dict[Method, Cells],
    labels: tuple[str, ...] = (),
    published: dict[Method, Cells | None] | None = None,
) -> list[Row]:
    """Return the rows of methods; a method's difference to its supervised twin and its published values follow it."""
    rows = []
    names = _labels_of(by_method)
    for method, cells in by_method.items():
        rows.append(Row((*labels, names[method]), cells))
        twin = _twin(method, by_method)
        if twin is not None:
            deltas = tuple(difference(a, b) for a, b in zip(cells, by_method[twin], strict=True))
            rows.append(Row((*labels, f"minus {names[twin]}"), deltas, "difference"))
        if published and published.get(method):
            rows.append(Row((*labels, "as published"), published[method], "published"))
    return rows


def _twin(method: Method, methods: Iterable[Method]) -> Method | None:
    """Return the supervised method with the same prompts: of the same configuration, or the only one there is."""
    if not is_distilled(method.name):
        return None
    candidates = [other for other in methods if other.name == method.supervised_name]
    same = [other for other in candidates if other.config == method.config]
    return same[0] if same else candidates[0] if len(candidates) == 1 else None


def _labels_of(methods: Iterable[Method]) -> dict[Method, str]:
    """Return the names of methods, with the settings in which they differ."""
    methods = list(methods)
    labels = {}
    for method in methods:
        rivals = [other for other in methods if other.name == method.name and other != method]
        parts = []
        if method.template:
            parts.append(f'"{method.template}"')
        parts += [
            getattr(method, key) or "unknown"
            for key in ("config", "teacher", "recipe")
            if any(getattr(other, key) != getattr(method, key) for other in rivals)
        ]
        labels[method] = f"{method.name} ({', '.join(parts)})" if parts else method.name
    return labels


@lru_cache
def published() -> dict[tuple[str, str], dict[str, float]]:
    """Return the values of the paper (arXiv:2407.03056) by student and method: accuracy by data set, and "mean"."""
    with Path(__file__).with_name("published.csv").open(encoding="utf-8", newline="") as file:
        return {(r.pop("student"), r.pop("method")): {k: float(v) for k, v in r.items()} for r in csv.DictReader(file)}


def _published_row(backbone: str, method: Method, targets: list[Data]) -> Cells | None:
    if method.template or (method.teacher and method.teacher != PAPER_TEACHER):
        return None
    values = published().get(("any" if method.name == "ZeroshotTeacher" else backbone, method.name))
    if values is None:
        return None
    names = [SOURCE, *(target.dataset for target in targets)]
    mean = values["mean"] if set(names[1:]) == set(SHIFTED[SOURCE]) else None
    return tuple(None if v is None else Cell({ANY_SEED: v}) for v in [*(values.get(name) for name in names), mean])


def cell_of(scores: Iterable[Score]) -> Cell | None:
    scores = list(scores)
    if not scores:
        return None
    if scores[0].method.is_zero_shot:
        scores = scores[-1:]
        return Cell({ANY_SEED: scores[0].accuracy}, replicates=_replicates({ANY_SEED: scores[0]}))
    return Cell({score.seed: score.accuracy for score in scores}, replicates=_replicates({s.seed: s for s in scores}))


def _replicates(scores: dict[int | None, Score]) -> Replicates | None:
    """Return the bootstrap of a cell; None if a result lacks its counts by class, or they are of other classes."""
    first = next(iter(scores.values()))
    images = [n for _, n in first.right]
    alike = all(s.class_names == first.class_names and [n for _, n in s.right] == images for s in scores.values())
    if not images or not alike:
        return None
    right = {seed: np.array([n for n, _ in score.right]) for seed, score in scores.items()}
    return Counts(right, np.array(images), str(first.trained), first.class_names or str(first.tested)).accuracies


def _seeds(scores: Iterable[Score], seeds: Sequence[int]) -> tuple[int, ...]:
    return tuple(seeds) or tuple(sorted({score.seed for score in scores if not score.method.is_zero_shot}))


def _trained_on_base(score: Score) -> bool:
    return score.trained.classes == "base" and score.trained.dataset == score.tested.dataset


def _methods(scores: Iterable[Score]) -> list[Method]:
    return sorted({score.method for score in scores}, key=_method_key)


def _method_key(method: Method) -> tuple:
    name = method.supervised_name
    place = _METHOD_ORDER.index(name) if name in _METHOD_ORDER else len(_METHOD_ORDER)
    agnostic = method.name.endswith("-CA")
    settings = method.config, method.teacher, method.template, method.recipe
    return (place, name, is_distilled(method.name), agnostic, *settings)


def _dataset_key(name: str) -> tuple[int, str]:
    return (_DATASET_ORDER.index(name) if name in _DATASET_ORDER else len(_DATASET_ORDER), name)


def _subject(backbone: str, shots: int, source: Data | None = None) -> str:
    parts = [f"student {backbone}"]
    if source is not None:
        parts.append(f"source {source}")
    if shots:
        parts.append(f"{shots} shots" if shots > 0 else "all training images")
    return ", ".join(parts)
