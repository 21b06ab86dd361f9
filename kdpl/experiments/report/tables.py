"""The tables of the four protocols, made of scores: base-to-new, cross-dataset, domain generalisation, few-shot."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from kdpl.config.keys import is_distilled
from kdpl.experiments.report.cells import ANY_SEED, Cell, Replicates, average, difference, harmonic_mean, replicates_of
from kdpl.experiments.report.runs import Data, Method, Score

SOURCE = "ImageNet"
SHIFTED = {  # data sets of a source's classes under other distributions
    SOURCE: ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR"),
    "EmojiAll": ("EmojiV2", "EmojiSketch", "EmojiA", "EmojiR"),
}
AVERAGE = "average"
SHIFT = "domain generalisation"

_DATASET_ORDER = (
    SOURCE, "Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101", "FGVCAircraft", "SUN397",
    "DescribableTextures", "EuroSAT", "UCF101", *SHIFTED[SOURCE], *SHIFTED["EmojiAll"],
)  # fmt: skip
_METHOD_ORDER = ("ZeroshotCLIP", "ZeroshotCLIP2", "ZeroshotTeacher", "CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP")

Cells = tuple[Cell | None, ...]
Block = dict[Method, Cells]  # the rows of a data set, or of a whole table


@dataclass(frozen=True)
class Row:
    """A row: its labels, then its cells; `kind` is "method" or "difference"."""

    labels: tuple[str, ...]
    cells: Cells
    kind: str = "method"


@dataclass(frozen=True)
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
    rows: Sequence[Row]

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
            tables += protocol(of_student, f"student {backbone}")
    return [replace(table, seeds=tuple(seeds) or table.seeds) for table in tables if table.rows]


def _table(
    protocol: str, subject: str, columns: Iterable[object], scores: Iterable[Score], rows: Sequence[Row], *labels: str
) -> Table:
    """Return a table that is expected to have the seeds of its scores."""
    seeds = sorted({score.seed for score in scores if not score.method.is_zero_shot})
    return Table(protocol, subject, labels or ("data set", "method"), tuple(map(str, columns)), tuple(seeds), rows)


def _base_to_new(scores: list[Score], student: str) -> Iterator[Table]:
    halves = [s for s in scores if s.tested.classes != "all" and (s.trained is None or _trained_on_base(s))]
    for shots in sorted({score.shots for score in halves if score.trained}) or [0]:
        trained = {score.tested.dataset for score in halves if score.trained and score.shots == shots}
        chosen = [s for s in halves if (s.shots == shots if s.trained else not trained or s.tested.dataset in trained)]
        rows = _dataset_rows(chosen, lambda s: s.tested.classes, ("base", "new"), lambda c: (*c, harmonic_mean(*c)))
        yield _table("base-to-new", student + _shots(shots), ("base", "new", "H"), chosen, rows)


def _trained_on_base(score: Score) -> bool:
    return score.trained.classes == "base" and score.trained.dataset == score.tested.dataset


def _few_shot(scores: list[Score], student: str) -> Iterator[Table]:
    whole = [s for s in scores if s.tested.classes == "all" and s.trained in (None, s.tested)]
    sources = {s.trained for s in scores if s.tested.classes == "all" and s.trained not in (None, s.tested)}
    shots_of: dict[Data, set[int]] = defaultdict(set)
    for score in whole:
        if score.trained or not any(s.trained for s in scores):
            shots_of[score.tested].add(score.shots)
    # A source with one number of shots stands in the table of its transfer already.
    shown = {data for data, n in shots_of.items() if len(n) > 1 or (data not in sources and data != Data(SOURCE))}
    chosen = [score for score in whole if score.tested in shown]
    shots = sorted({score.shots for score in chosen})
    subject = f"{student}, all classes, by training images of each class"
    yield _table("few-shot", subject, shots, chosen, _dataset_rows(chosen, lambda s: s.shots, shots))


def _transfers(scores: list[Score], student: str) -> Iterator[Table]:
    """Give the tables of prompts trained on all classes of a source and tested elsewhere."""
    whole = [s for s in scores if s.tested.classes == "all" and (s.trained is None or s.trained.classes == "all")]
    origins = {(s.trained, s.shots) for s in whole if s.trained}
    for source, shots in sorted(origins, key=lambda o: (_dataset_key(str(o[0])), o[1])):
        of = [s for s in whole if s.trained is None or (s.trained, s.shots) == (source, shots)]
        targets = {s.tested for s in of if s.trained and s.tested != source}
        shifted = {t for t in targets if t.dataset == source.dataset or t.dataset in SHIFTED.get(str(source), ())}
        for protocol, tested in (("cross-dataset", targets - shifted), (SHIFT, shifted)):
            # The paper's table begins with the source itself, so it is worth showing alone.
            if tested or (protocol == SHIFT and source == Data(SOURCE)):
                columns = [source, *sorted(tested, key=lambda data: _dataset_key(str(data)))]
                chosen = [s for s in of if s.tested in columns]
                rows = _transfer_rows(chosen, columns)
                headings = (f"{source} (source)", *columns[1:], AVERAGE)
                yield _table(protocol, f"{student}, source {source}{_shots(shots)}", headings, chosen, rows, "method")


def _transfer_rows(scores: list[Score], columns: Sequence[Data]) -> list[Row]:
    """Return the rows of prompts trained on the first of the columns."""
    block = {m: (*cells, average(cells[1:])) for m, cells in _block(scores, lambda s: s.tested, columns).items()}
    return _rows(block)


def _shots(shots: int) -> str:
    return f", {shots} shots" if shots > 0 else ", all training images" if shots else ""


def _block(scores: Iterable[Score], key: Callable[[Score], object], columns: Sequence[object], methods: Sequence = ()) -> Block:
    """Return the cells of each method; `key`: of a score, the column that it belongs in."""
    grouped = defaultdict(list)
    for score in scores:
        grouped[score.method, key(score)].append(score)
    methods = methods or sorted({method for method, _ in grouped}, key=_method_key)
    return {method: tuple(cell_of(grouped[method, column]) for column in columns) for method in methods}


def _dataset_rows(
    scores: list[Score], key: Callable[[Score], object], columns: Sequence[object], finish: Callable[[Cells], Cells] = tuple
) -> list[Row]:
    """Return rows for every data set and method, those of the average over data sets first.

    Args:
        key: of a score, equal to the column that it belongs in.
        finish: adds the columns that are computed from the others.
    """
    methods = sorted({score.method for score in scores}, key=_method_key)
    datasets = sorted({str(score.tested) for score in scores}, key=_dataset_key)
    blocks = {name: _block([s for s in scores if str(s.tested) == name], key, columns, methods) for name in datasets}
    if len(blocks) > 1:
        averages = {m: tuple(map(average, zip(*(block[m] for block in blocks.values()), strict=True))) for m in methods}
        blocks = {AVERAGE: averages, **blocks}
    return [row for name, block in blocks.items() for row in _rows({m: finish(c) for m, c in block.items()}, (name,))]


def _rows(block: Block, labels: tuple[str, ...] = ()) -> list[Row]:
    """Return the rows of methods; a method's difference to its supervised twin follows it."""
    rows, names = [], _labels_of(block)
    for method, cells in block.items():
        rows.append(Row((*labels, names[method]), cells))
        if twin := _twin(method, block):
            deltas = tuple(map(difference, cells, block[twin]))
            rows.append(Row((*labels, f"minus {names[twin]}"), deltas, "difference"))
    return rows


def _twin(method: Method, methods: Iterable[Method]) -> Method | None:
    """Return the supervised method with the same prompts: of the same configuration, or the only one there is."""
    if not is_distilled(method.name):
        return None
    candidates = [other for other in methods if other.name == method.supervised_name]
    same = [other for other in candidates if other.config == method.config]
    return same[0] if same else candidates[0] if len(candidates) == 1 else None


def _labels_of(methods: Collection[Method]) -> dict[Method, str]:
    """Return the names of methods, with the settings in which they differ."""
    labels = {}
    for method in methods:
        rivals = [other for other in methods if other.name == method.name]
        differing = [key for key in ("config", "teacher", "recipe") if len({getattr(each, key) for each in rivals}) > 1]
        parts = [f'"{method.template}"'] if method.template else []
        parts += [getattr(method, key) or "unknown" for key in differing]
        labels[method] = f"{method.name} ({', '.join(parts)})" if parts else method.name
    return labels


def cell_of(scores: Iterable[Score]) -> Cell | None:
    """Return the cell of a method's scores; a result that depends on no seed counts once, the last one."""
    by_seed = {ANY_SEED if score.method.is_zero_shot else score.seed: score for score in scores}
    return Cell({seed: s.accuracy for seed, s in by_seed.items()}, replicates=_replicates(by_seed)) if by_seed else None


def _replicates(scores: dict[int | None, Score]) -> Replicates | None:
    """Return the bootstrap of a cell; None if a result lacks its counts by class, or they are of other classes."""
    of = {(score.class_names, tuple(images for _, images in score.right)) for score in scores.values()}
    first = next(iter(scores.values()))
    if len(of) > 1 or not first.right:
        return None
    right = {seed: [n for n, _ in score.right] for seed, score in scores.items()}
    return replicates_of(right, [n for _, n in first.right], str(first.trained), first.class_names or str(first.tested))


def _method_key(method: Method) -> tuple:
    name = method.supervised_name
    place = _METHOD_ORDER.index(name) if name in _METHOD_ORDER else len(_METHOD_ORDER)
    agnostic = method.name.endswith("-CA")
    return (place, name, is_distilled(method.name), agnostic, method.config, method.teacher, method.template, method.recipe)


def _dataset_key(name: str) -> tuple[int, str]:
    return (_DATASET_ORDER.index(name) if name in _DATASET_ORDER else len(_DATASET_ORDER), name)
