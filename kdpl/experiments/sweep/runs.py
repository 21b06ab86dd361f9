"""A sweep and its runs: the commands, and the output folders of CoOp and its forks."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from itertools import product
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from kdpl.common.environment import PACKAGE
from kdpl.common.messages import did_you_mean
from kdpl.config import manifest
from kdpl.config.checks import check_config
from kdpl.config.command_line import CONFIGS, build_cfg, parse_args
from kdpl.config.defaults import node_of
from kdpl.config.keys import BY_TEACHER, SPLITS, ConfigError, check_choice
from kdpl.training.results import results_or_none

STEPS = ("train", "test", "test_base")
TRIALS = "trials"  # the folder of a search in that of its sweep
Cell = tuple[str, str, int]  # trainer, data set that it learns from, shots
ZERO_SHOT = {"ZeroshotCLIP": "CoOp", "ZeroshotCLIP2": "CoOp", "ZeroshotTeacher": "KDPL_CoOp"}  # whose configuration they use
# The script of a checkout, which reads well in a log; an installed package has none.
TRAIN = ["-m", "kdpl.train"] if CONFIGS.parent == PACKAGE else [str(CONFIGS.parent / "train.py")]


@dataclass(frozen=True)
class Resources:
    """What a run may use; only `jobs`, `gpus` and `restarts` matter on this machine.

    Attributes:
        jobs: runs at once on this machine; 0: one for each GPU, or one.
        max_parallel: runs at once on the cluster.
        restarts: how often a run is restarted that was interrupted (on this machine) or ran out of time (on the cluster).
        time: minutes.
        setup: lines of shell before Python starts, such as `module load cuda`.
    """

    jobs: int = 0
    max_parallel: int = 256
    restarts: int = 10
    time: int = 240
    memory: str = ""
    partition: str = ""
    account: str = ""
    qos: str = ""
    constraint: str = ""
    cpus: int = 4
    gpus: int = 1
    setup: tuple[str, ...] = ()


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high` that Optuna draws from: whole ones if both are; `log`: even on a logarithmic scale."""

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Search:
    """Settings that are chosen for each trainer, data set and number of shots, by validation images, before the sweep's runs.

    Attributes:
        by: "accuracy" on the validation images, or "agreement" with the teacher on them, which needs no label.
        space: by the name of a setting its values, as text, or their range. Values alone are a grid, of which all is tried.
        trials: how many Optuna tries where there is a range; 0 for a grid.
    """

    by: str
    space: Mapping[str, tuple[str, ...] | Range]
    trials: int = 0


@dataclass(frozen=True)
class Sweep:
    """Trainers x data sets x shots x seeds, from a file or from flags (`kdpl.experiments.sweep.plan`). Paths are absolute."""

    name: str
    protocol: str
    trainers: tuple[str, ...]
    datasets: tuple[str, ...]
    source: tuple[str, ...] = ("imagenet",)
    steps: tuple[str, ...] = STEPS[:2]
    seeds: tuple[int, ...] = (1, 2, 3)
    shots: tuple[int, ...] = (16,)
    config: str = "vit_b32"
    class_agnostic: bool = False
    data: str = ""
    output: Path = Path("output")
    options: tuple[str, ...] = ()  # KEY VALUE KEY VALUE ...
    search: Search | None = None
    executor: Resources = field(default_factory=Resources)

    @property
    def folder(self) -> Path:
        """The folder of the sweep's logs, records and report."""
        return self.output / "sweeps" / self.name


@dataclass(frozen=True)
class Step:
    """One process of a run: a training with its test, or a test of learned prompts.

    Attributes:
        datasets: the step is done once each has a result; a training has one.
        training: the step whose prompts are tested; None: this is the training.
        others: test on the data sets that have no result yet, in one process.
    """

    folder: Path
    trainer: str
    config_file: Path
    datasets: tuple[str, ...]
    seed: int
    shots: int
    data: str
    options: tuple[str, ...]
    classes: str = "all"
    training: "Step | None" = None
    others: bool = False

    @property
    def model_dir(self) -> Path | None:
        return self.training.folder if self.training else None

    @property
    def split(self) -> str:
        """The images that are tested on, and whose labels if not their own: as results have it."""
        given = dict(zip(self.options[::2], self.options[1::2], strict=True))
        return given.get("TEST.SPLIT", "test") + (BY_TEACHER if given.get("TEST.LABELS") == "teacher" else "")

    @cached_property
    def _cfg(self) -> CfgNode | None:
        """The configuration of the training; None for a trainer that is not KDPL's."""
        training = self.training or self
        if not node_of(training.trainer) and training.trainer not in ZERO_SHOT:
            return None
        dataset = training.datasets[0]
        return build_cfg(parse_args(training.arguments([dataset])), str(CONFIGS / "datasets" / f"{dataset}.yaml"))

    @property
    def domains(self) -> list[str] | None:
        """The DATASET.TARGET_DOMAINS that are tested on; None if not known."""
        return None if self._cfg is None else list(self._cfg.DATASET.TARGET_DOMAINS)

    @cached_property
    def settings(self) -> dict[str, Any] | None:
        """The configuration of the training, as its manifest records it; None for a trainer that is not KDPL's.

        Raises:
            ConfigError: the run itself would refuse it.
        """
        training, cfg = self.training or self, self._cfg
        if cfg is None:
            return None
        node = node_of(training.trainer)
        with_teacher = training.trainer.startswith("KDPL_") or training.trainer == "ZeroshotTeacher"
        for each in (node, "KDPL") if with_teacher else (node,):
            check_config(cfg, each)
        return manifest.config_of(cfg, node, with_teacher)

    def missing(self) -> list[str]:
        """Return the data sets without a result of these settings and, of a test, of the prompts that its training has now."""
        return list(self.datasets) if self.stale() else self._without_result(self.split, self.domains)

    def ended(self) -> bool:
        """Return whether it has results of these settings, on whichever split."""
        return not self.stale() and any(not self._without_result(split, None) for split in SPLITS)

    def _without_result(self, split: str, domains: list[str] | None) -> list[str]:
        results = results_or_none(self.folder)
        if results is None or self.has_other_prompts():
            return list(self.datasets)
        there = {
            _plain(entry["dataset"])
            for entry in results["results"]
            if (entry["classes"], entry["split"]) == (self.classes, split) and domains in (None, entry["target_domains"])
        }
        return [name for name in self.datasets if _plain(name) not in there]

    def has_other_prompts(self) -> bool:
        """Return whether its results are of other prompts than the training has now."""
        tested, trained = results_or_none(self.folder), self.training and results_or_none(self.training.folder)
        return bool(tested and trained) and tested["prompts"] != trained["prompts"]

    def stale(self) -> list[str]:
        """Return in what the settings differ from those that the folder's run was made with."""
        results = results_or_none(self.folder)
        then = manifest.read_manifest(self.folder) or manifest.Manifest.from_dict((results or {}).get("manifest"))
        if self.settings is None:
            return []
        if then is None:
            return ["it has no manifest"] if results else []
        return list(manifest.compare_settings(then.config, self.settings).values())

    def command(self) -> list[str]:
        """Return the command line of `train.py` for what is missing; a folder that was made otherwise starts over."""
        fresh = ["--fresh"] if self.has_other_prompts() or self.stale() else []
        return [sys.executable, *TRAIN, *fresh, *self.arguments(self.missing() or self.datasets)]

    def arguments(self, datasets: Sequence[str]) -> list[str]:
        """Return the arguments of `train.py` for these data sets."""
        flags = ["--eval-only", "--model-dir", str(self.model_dir)] if self.training else []
        if self.others:
            flags += ["--eval-datasets", *datasets]
        options = ["DATASET.NUM_SHOTS", str(self.shots)]
        if self.classes != "all":
            options += ["DATASET.SUBSAMPLE_CLASSES", self.classes]
        if not self.training:
            options += ["TRAIN.CHECKPOINT_FREQ", "1"]
        return [
            *flags, "--root", self.data, "--seed", str(self.seed), "--trainer", self.trainer,
            "--dataset-config-file", str(CONFIGS / "datasets" / f"{datasets[0]}.yaml"), "--config-file", str(self.config_file),
            "--output-dir", str(self.folder), *options, *self.options,
        ]  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One trainer, data set, number of shots and seed: its steps, one after the other.

    Attributes:
        key: the output folder as one word; a label is the same whatever the configuration, a key is not.
    """

    label: str
    key: str
    steps: tuple[Step, ...]

    def done(self) -> bool:
        return not any(step.missing() for step in self.steps)

    def stale(self) -> list[str]:
        """Return in what the settings differ from those that its results were made with."""
        return list(dict.fromkeys(text for step in self.steps for text in step.stale()))


def _plain(name: str) -> str:
    """Return a DATASET.NAME and the stem of its configuration file, "EmojiSky" and "emoji_sky", in one spelling."""
    plain = name.replace("_", "").replace("-", "").lower()
    return "describabletextures" if plain == "dtd" else plain


def cells_of(sweep: Sweep) -> list[Cell]:
    """Return what has settings of its own: every trainer, data set that it learns from, and number of shots."""
    trained_on = sweep.source if sweep.protocol == "xd" else sweep.datasets
    return list(product(sweep.trainers, trained_on, sweep.shots))


def runs_of(sweep: Sweep, chosen: Mapping[Cell, tuple[str, ...]] | None = None) -> list[Run]:
    """Return all runs of a sweep, seed after seed of a cell; `chosen`: the options that a search found for each."""
    return [_run(sweep, cell, seed, (chosen or {}).get(cell, ())) for cell in cells_of(sweep) for seed in sweep.seeds]


def runs_of_trial(sweep: Sweep, cell: Cell, number: int, options: tuple[str, ...]) -> list[Run]:
    """Return the trainings of one trial of a search, tested on the validation images, in folders of the sweep's own."""
    folder = sweep.folder / TRIALS / "_".join(map(str, cell)) / f"{number:03d}"
    apart = replace(sweep, output=folder, steps=STEPS[:1])
    tested = ("TEST.SPLIT", "val", *(("TEST.LABELS", "teacher") if sweep.search and sweep.search.by == "agreement" else ()))
    runs = [_run(apart, cell, seed, (*options, *tested)) for seed in sweep.seeds]
    return [
        replace(run, label=f"{run.label}, trial {number}", key=f"{folder.parent.name}_{folder.name}_{run.key}") for run in runs
    ]


def _run(sweep: Sweep, cell: Cell, seed: int, chosen: tuple[str, ...]) -> Run:
    trainer, dataset, shots = cell
    config_file = config_of(trainer, sweep.config, sweep.protocol)
    agnostic = ("TRAINER.KDPL.CLASS_AGNOSTIC", "True") if sweep.class_agnostic else ()
    step = partial(Step, trainer=trainer, config_file=config_file, seed=seed, shots=shots, data=sweep.data,
                   options=agnostic + sweep.options + chosen)  # fmt: skip
    method = f"{trainer}-CA" if sweep.class_agnostic else trainer
    if sweep.protocol == "base2new":
        end, of = Path(dataset, f"shots_{shots}", method, config_file.stem, f"seed{seed}"), (dataset,)
        train = step(sweep.output / "base2new/train_base" / end, datasets=of, classes="base")
        test = step(sweep.output / "base2new/test_new" / end, datasets=of, classes="new", training=train)
        base = step(sweep.output / "base2new/test_base" / end, datasets=of, classes="base", training=train)
        known = (train, test, base)
    else:
        end = Path(method, f"{config_file.stem}_{shots}shots", f"seed{seed}")
        train = step(sweep.output / dataset / end, datasets=(dataset,))
        evaluation = "evaluation" if dataset == "imagenet" else f"evaluation_{dataset}"  # sources must not share a folder
        test = step(sweep.output / evaluation / end, datasets=sweep.datasets, training=train, others=True)
        known = (train, test)
    steps = tuple(s for name, s in zip(STEPS, known, strict=False) if name in sweep.steps)
    of_source = dataset if sweep.protocol == "base2new" else f"from {dataset}"
    key = "_".join(steps[-1].folder.relative_to(sweep.output).parts)
    return Run(f"{method} {of_source}, {shots} shots, seed {seed}", key, steps)


def config_of(trainer: str, config: str, protocol: str) -> Path:
    """Return a trainer's configuration file: the one of that name, else the one that begins with it.

    Raises:
        ConfigError: there is none, or there are several.
    """
    folders = {p.name: p for p in sorted((CONFIGS / "trainers").glob("*"))}
    if not folders:
        raise ConfigError(f"There are no configurations in '{CONFIGS}': run sweeps from a checkout of the repository.")
    folders = {name.removeprefix("KDPL_"): folder for name, folder in folders.items()} | folders  # a twin may have its own
    folders |= {name: folders[of] for name, of in ZERO_SHOT.items() if of in folders}
    check_choice("trainers:", trainer, list(folders))
    files = sorted(folders[trainer].glob("*.yaml"))
    names = [file.stem for file in files]
    if config in names:
        return files[names.index(config)]
    candidates = [f for f in files if f.stem.startswith(f"{config}_") and not f.stem.endswith("_cross_datasets")]
    if len(candidates) != 1:
        problem = f"several configurations '{config}_*', choose one" if candidates else f"no configuration '{config}'"
        raise ConfigError(f"config: {trainer} has {problem} of {', '.join(names)}.{did_you_mean(config, names)}")
    # PromptSRC has settings of its own for training on all classes of a source.
    special = candidates[0].with_name(f"{candidates[0].stem}_cross_datasets.yaml")
    return special if protocol != "base2new" and special in files else candidates[0]
