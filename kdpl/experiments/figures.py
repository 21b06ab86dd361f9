"""Figures of a paper, or of a user, held against what this installation measures with real weights."""

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from platform import platform
from typing import Any

from kdpl.clip.model import effective_precision
from kdpl.clip.names import DEFAULT_TAGS, EMBEDDED, OPENAI_MODELS
from kdpl.common import exits
from kdpl.common.environment import git_state, version_of, versions
from kdpl.common.messages import signed
from kdpl.config.command_line import CONFIGS, build_cfg, parse_args
from kdpl.config.defaults import node_of
from kdpl.config.keys import ConfigError, check_choice, is_distilled
from kdpl.config.merging import read_mapping
from kdpl.experiments.report.tables import PAPER_SHOTS, PAPER_TEACHER, SOURCE, published
from kdpl.experiments.sweep.runs import ZERO_SHOT, Step, config_of
from kdpl.training.results import read_results, same_dataset

PAPER = "arXiv:2407.03056"
STUDENT = "ViT-B/32"  # of the paper's trained prompts that are checked
FLIPS = 0.05  # share of test images whose prediction another precision, decoder or resizing may change
SEED_STD = 0.2  # points, between seeds: of CoOp, ViT-B/32, ImageNet (64.38, 64.72, 64.72: KaiyangZhou/CoOp, issue 45)
MODEL_KEYS = ("MODEL.BACKBONE.NAME", "TRAINER.KDPL.TEACHER")  # of the student and the teacher
ENTRY = ("accuracy", "tolerance")
TITLE = "# kdpl check-weights\n"
PACKAGES = ("torchvision", "open_clip_torch", "rf-clip", "timm", "numpy", "pillow")


@dataclass(frozen=True)
class Figure:
    """An expected accuracy on all classes of a data set, in percent.

    Attributes:
        model: the student; of ZeroshotTeacher, the teacher.
        dataset: of configs/datasets/NAME.yaml.
        tolerance: points by which a measured accuracy may differ.
        teacher: of a KDPL trainer, else empty.
        source: where the figure is from.
    """

    method: str
    model: str
    dataset: str
    accuracy: float
    tolerance: float
    source: str
    teacher: str = ""

    @property
    def trains(self) -> bool:
        return self.method not in ZERO_SHOT

    @property
    def models(self) -> tuple[str, ...]:
        return (self.model, self.teacher) if self.teacher else (self.model,)


@dataclass(frozen=True)
class Setup:
    """Where and how figures are measured.

    Attributes:
        files: the weights of each model.
        digests: the SHA-256 of these files.
        given: the models whose file the user has named.
        options: KEY VALUE pairs for all runs.
    """

    root: str
    output: Path
    seed: int
    files: Mapping[str, Path]
    digests: Mapping[str, str]
    given: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()

    def name(self, model: str) -> str:
        """Return the name that a model is loaded by: its own, or one with the file that the user has named."""
        if model not in self.given:
            return model
        tag = [DEFAULT_TAGS[model]] if model in DEFAULT_TAGS else []
        return ":".join([*([] if model in (*OPENAI_MODELS, *EMBEDDED) else [model, *tag]), str(self.files[model])])

    def step(self, figure: Figure) -> Step:
        """Return the run that measures a figure.

        Its folder is named after the weights, the data folder, the installation and the options, none of which a result's own
        settings have in full: what was measured with others is never taken for it.
        """
        seed = self.seed if figure.trains else 1
        key = [*(self.digests[m] for m in figure.models), self.root, versions(), git_state(), self.options, seed]
        names = [_plain(figure.method), *map(_plain, figure.models), sha256(repr(key).encode()).hexdigest()[:8]]
        models = ("", figure.model) if figure.method == "ZeroshotTeacher" else (figure.model, figure.teacher)
        pairs = [(option, self.name(model)) for option, model in zip(MODEL_KEYS, models, strict=True) if model]
        options = [part for pair in pairs for part in pair]
        return Step(
            self.output / figure.dataset / "_".join(names), figure.method, _settings(figure), (figure.dataset,), seed,
            PAPER_SHOTS if figure.trains else -1, self.root, (*options, *self.options),
        )  # fmt: skip


@dataclass(frozen=True)
class Measurement:
    """What became of a figure: the content of its `results.json`, or the reason why there is none."""

    figure: Figure
    step: Step
    run: Mapping[str, Any] | None = None
    reason: str = ""

    @property
    def result(self) -> Mapping[str, Any]:
        """The test of the data set, of a figure that is measured."""
        return next(entry for entry in self.run["results"] if same_dataset(entry["dataset"], self.figure.dataset))

    @property
    def verdict(self) -> str:
        if self.run is None:
            return "not measured"
        return "agrees" if abs(self.result["accuracy"] - self.figure.accuracy) <= self.figure.tolerance + 1e-9 else "differs"

    def row(self) -> str:
        f = self.figure
        measured = self.result["accuracy"] if self.run else None
        found, off = ("—", "—") if measured is None else (f"{measured:.2f}", signed(measured - f.accuracy, 2))
        why = f": {self.reason}".replace("|", "\\|") if self.reason else ""
        cells = (f.method, f.model, f.dataset, found, f"{f.accuracy:.2f}", off, f"{f.tolerance:.2f}", self.verdict + why)
        return f"| {' | '.join(cells)} |"

    def conditions(self) -> str:
        """Return where and with what a figure was measured."""
        f, where, weights = self.figure, self.run["manifest"]["environment"]["device"], self.run["manifest"]["facts"]
        cfg = build_cfg(parse_args(self.step.arguments(self.step.datasets)), str(dataset_file(f.dataset)))
        nodes = ["KDPL"] if f.method == "ZeroshotTeacher" else [node_of(f.method) or "COOP", *(["KDPL"] if f.teacher else [])]
        kind = "cpu" if where == "cpu" else "cuda"
        frozen = [bool(f.teacher) and node == "KDPL" for node in nodes]
        precisions = [effective_precision(cfg.TRAINER[n].PREC, kind, still) for n, still in zip(nodes, frozen, strict=True)]
        digests = [weights[key] for key in ("clip", "student", "teacher") if weights.get(key)]
        return (
            f"- {f.method}, {', '.join(f.models)}, {f.dataset}: {self.result['num_images']} images, "
            f"{self.result['num_classes']} classes, on {where} in {' and '.join(precisions)}, "
            f"digest of tensors {' and '.join(digests)}, {self.result['time']}"
        )


def published_figures(dataset: str, images: int, method: str) -> list[Figure]:
    """Return the paper's figures for a data set: students and teacher with one sentence, and of ImageNet one trained method.

    A tolerance is three standard deviations of the accuracy if `FLIPS` of the predictions fall by chance. The paper's trained
    accuracies are means of seeds 1, 2 and 3 without a spread that we know of: one seed may differ from them by two standard
    deviations, `SEED_STD * sqrt(1 + 1/3)`, more.

    Args:
        images: the number of test images.
        method: the trainer whose prompts are checked, with student ViT-B/32.
    """
    zero_shot = round(300 * math.sqrt(FLIPS / images), 2)
    trained = round(zero_shot + 2 * SEED_STD * math.sqrt(1 + 1 / 3), 2)
    found = []
    for (student, name), values in published().items():
        for accuracy in (value for key, value in values.items() if same_dataset(key, dataset)):
            if name in ZERO_SHOT:
                model = PAPER_TEACHER if name == "ZeroshotTeacher" else student
                found.append(Figure(name, model, dataset, accuracy, zero_shot, PAPER))
            elif (student, name) == (STUDENT, method) and same_dataset(dataset, SOURCE):
                found.append(Figure(name, student, dataset, accuracy, trained, PAPER, PAPER_TEACHER))
    return sorted(found, key=lambda figure: figure.trains)


def published_methods() -> list[str]:
    """Return the KDPL trainers whose figures with student ViT-B/32 the paper has."""
    return [method for student, method in published() if student == STUDENT and is_distilled(method)]


def read_figures(file: Path) -> list[Figure]:
    """Read figures from YAML: `METHOD: {MODEL: {DATASET: {accuracy: 62.0, tolerance: 0.3}}}`, KDPL's with `teacher: MODEL`.

    Raises:
        ConfigError: the file cannot be read, or a name or value in it is not possible; the message names it.
    """
    known = sorted(p.stem for p in (CONFIGS / "datasets").glob("*.yaml"))
    trainers = [*ZERO_SHOT, *sorted(p.name for p in (CONFIGS / "trainers").glob("KDPL_*"))]
    found = []
    for method, models in read_mapping(file).items():
        check_choice(f"A method in '{file}',", str(method), trainers)
        for model, datasets in _mapping(models, f"'{file}': {method}", "MODEL: {...}").items():
            for dataset, content in _mapping(datasets, f"'{file}': {method}: {model}", "DATASET: {...}").items():
                check_choice(f"A data set in '{file}',", str(dataset), known)
                where = f"'{file}': {method}: {model}: {dataset}"
                keys = (*ENTRY, "teacher") if is_distilled(method) else ENTRY
                entry = _mapping(content, where, ", ".join(keys))
                if set(entry) != set(keys):
                    raise ConfigError(f"{where} has the keys {', '.join(map(str, entry))}, expected {', '.join(keys)}.")
                accuracy, tolerance = (_percent(entry[key], f"{where}: {key}") for key in ENTRY)
                teacher = str(entry.get("teacher", ""))
                found.append(Figure(method, str(model), dataset, accuracy, tolerance, str(file), teacher))
    return found


def measurement_of(figure: Figure, setup: Setup, reason: str) -> Measurement:
    """Return what the output folder has of a figure; `reason`: why there may be nothing."""
    step = setup.step(figure)
    return Measurement(figure, step, reason=reason) if step.missing() else Measurement(figure, step, read_results(step.folder))


def exit_status(measurements: Iterable[Measurement]) -> int:
    """Return the exit status: a figure that differs counts more than one that could not be measured."""
    verdicts = {m.verdict for m in measurements}
    return exits.DIFFERS if "differs" in verdicts else exits.FAILED if "not measured" in verdicts else 0


def report(measurements: Sequence[Measurement], setup: Setup, notes: Sequence[str] = ()) -> str:
    """Return the Markdown of all measurements, with notes, tolerances, weights, versions and commands."""
    installed = {**versions(), "commit": git_state(), **{name: version_of(name) for name in PACKAGES}, "system": platform()}
    parts = {
        "": [
            "| method | model | data set | measured | expected | difference | tolerance | verdict |",
            "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |",
            *(m.row() for m in measurements),
            "",
            f"Top-1 accuracy in percent. Expected: {', '.join(sorted({m.figure.source for m in measurements}))}.",
            *([f"With settings other than the published ones: {shlex.join(setup.options)}."] if setup.options else []),
            *notes,
            *_about_tolerances([m.figure for m in measurements if m.figure.source == PAPER], setup),
        ],
        "Weights": [f"- {model}: `{file.name}`, SHA-256 `{setup.digests[model]}`" for model, file in setup.files.items()],
        "Runs": [m.conditions() for m in measurements if m.run],
        "Commands": ["```bash", *(shlex.join(m.step.command()) for m in measurements), "```"],
        "Installation": [f"- {name} {version}" for name, version in installed.items() if version],
    }
    text = [line for title, lines in parts.items() for line in (f"\n## {title}\n" if title else TITLE, *lines)]
    return "\n".join(text) + "\n"


def _about_tolerances(published: Sequence[Figure], setup: Setup) -> list[str]:
    """Return how the tolerances of the paper's figures were chosen."""
    if not published:
        return []
    lines = [
        f"\n- Tolerances with hand-written sentences: three standard deviations if {FLIPS:.0%} of the predictions fell by "
        "chance, as another precision, decoder or resizing may do (assumed). An error that moves accuracy less is not seen."
    ]
    if any(figure.trains for figure in published):
        lines.append(
            f"- Trained prompts: this is seed {setup.seed} alone, the paper's figure the mean of seeds 1, 2 and 3, without a "
            f"known spread. So the tolerance adds two deviations of their difference, 2 x {SEED_STD} x sqrt(1 + 1/3); "
            f"{SEED_STD} is what three seeds of CoOp showed with this student (KaiyangZhou/CoOp, issue 45), not of this method."
        )
    if any(figure.method == "ZeroshotTeacher" for figure in published):
        lines.append(
            "- The teacher's images are resized as its own configuration says (both edges). The published code gives the "
            "teacher the student's view in training; which of both the paper's zero-shot figure is of, we do not know."
        )
    return lines


def dataset_file(name: str) -> Path:
    return CONFIGS / "datasets" / f"{name}.yaml"


def _settings(figure: Figure) -> Path:
    """Return the trainer's published configuration for a model; of the embedded ones, theirs."""
    special = {"RN50": "rn50", "ViT-B/16": "vit_b16", **dict.fromkeys(EMBEDDED, "emoji")}
    return config_of(figure.method, special.get(figure.model, "vit_b32"), "xd")


def _plain(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in name)[-40:]


def _mapping(value: Any, where: str, expected: str) -> Mapping:
    if not isinstance(value, Mapping) or not value:
        raise ConfigError(f"{where} is {value!r}, expected {expected}.")
    return value


def _percent(value: Any, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= 100 or isinstance(value, bool):
        raise ConfigError(f"{where} is {value!r}, expected a number from 0 to 100.")
    return number
