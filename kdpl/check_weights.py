"""Measure with real weights and data what the paper reports, and say whether this installation agrees.

    kdpl check-weights --root DATA                              # zero-shot accuracies, then one KDPL training
    kdpl check-weights --root DATA --only zero-shot
    kdpl check-weights --root DATA --expect FIGURES.yaml        # with figures of your own (docs/reproduce.md)

The report to attach to an issue is OUTPUT/check_weights.md. The same command resumes. Exit status: 0 all agree, 6 one differs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from kdpl import estimate
from kdpl.clip.files import file_sha256
from kdpl.clip.loading import find_weights
from kdpl.common import exits
from kdpl.common.command import run_command
from kdpl.common.files import atomic_write
from kdpl.config.keys import ConfigError, check_choice
from kdpl.datasets.coop.catalog import CATALOG
from kdpl.datasets.coop.folder import DataFolder
from kdpl.datasets.prepare import inspect
from kdpl.experiments import figures
from kdpl.experiments.figures import Figure, Setup, measurement_of
from kdpl.experiments.sweep.runs import Run
from kdpl.experiments.sweep.work import environment, stopping, work
from kdpl.training.results import same_dataset


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl check-weights",
        usage="%(prog)s --root DATA [flags] [-- KEY VALUE ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--root", default="", help="folder of the data sets")
    parser.add_argument("--output", default="output/check_weights", help="folder of runs and report (default: %(default)s)")
    parser.add_argument("--dataset", default="imagenet", metavar="NAME", help="configs/datasets/NAME.yaml (default: imagenet)")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="only the figures of these students and teachers")
    parser.add_argument("--only", choices=("zero-shot", "training"), help="leave the other figures out")
    parser.add_argument("--method", default="KDPL_VPT", help="the trained method (default: %(default)s, the cheapest)")
    parser.add_argument("--seed", type=int, default=1, help="of the training (default: 1)")
    parser.add_argument("--weights", nargs="+", default=[], metavar="NAME=FILE", help="files of weights, by model")
    parser.add_argument("--expect", metavar="FILE.yaml", help="figures in place of the paper's")
    end = argv.index("--") if "--" in argv else len(argv)
    args = parser.parse_args(argv[:end])
    args.options = tuple(argv[end + 1 :])
    return args


def all_figures(args: argparse.Namespace) -> list[Figure]:
    """Return the figures that the command line names, those that `--models` and `--only` leave out too.

    Raises:
        ConfigError: a name is unknown, or there is no figure.
    """
    if args.expect:
        return figures.read_figures(Path(args.expect))
    check_choice("--method", args.method, figures.published_methods())
    facts = next((facts for facts in CATALOG.values() if same_dataset(facts.name, args.dataset)), None)
    found = figures.published_figures(args.dataset, facts.sizes[-1], args.method) if facts else []
    if not found:
        raise ConfigError(f"--dataset '{args.dataset}': no figure of it is published here. Give figures with --expect.")
    return found


def wanted_of(args: argparse.Namespace, found: Sequence[Figure]) -> list[Figure]:
    """Return the figures that are to be measured.

    Raises:
        ConfigError: none is left, or a model is unknown.
    """
    for model in args.models or ():
        check_choice("--models", model, models_of(found))
    wanted = [figure for figure in found if not args.models or {*figure.models} <= {*args.models}]
    wanted = [figure for figure in wanted if not args.only or figure.trains == (args.only == "training")]
    if not wanted:
        raise ConfigError(
            "No figure is left to measure: give --models all models of a figure, or leave --models or --only out."
        )
    return wanted


def models_of(wanted: Sequence[Figure]) -> list[str]:
    return list(dict.fromkeys(model for figure in wanted for model in figure.models))


def prepare(args: argparse.Namespace, wanted: Sequence[Figure]) -> Setup:
    """Find weights and data before anything is run.

    Raises:
        FileNotFoundError: some are missing; the message names them all, and how to get them.
        ConfigError, ModelNameError: a name or a flag is wrong.
    """
    if chosen := [key for key in args.options[::2] if key in figures.MODEL_KEYS]:
        raise ConfigError(f"{' '.join(chosen)} behind --: a figure is of its own models. Name others in a file, --expect.")
    given = dict(map(_name_and_file, args.weights))
    models = models_of(wanted)
    for model in given:
        check_choice("--weights", model, models)
    files = {model: given[model] if model in given else find_weights(model) for model in models}
    missing = [
        f"the weights of '{model}'{f' ({file})' if file else ''}. Where there is a network, python -c 'from kdpl.clip.loading "
        f'import load_clip; load_clip("{model}")\' downloads them; or give their file, --weights {model}=FILE (docs/models.md).'
        for model, file in files.items()
        if not (file and file.is_file())
    ]
    missing += _missing_data({figure.dataset for figure in wanted}, args.root)
    if missing:
        raise FileNotFoundError(
            "\n".join(["Nothing was measured, because these are missing:", *(f"  {text}" for text in missing)])
        )
    root = str(Path(args.root).expanduser().absolute()) if args.root else ""
    digests = {model: file_sha256(file) for model, file in files.items()}
    output = Path(args.output).expanduser().absolute()
    return Setup(root, output, args.seed, files, digests, frozenset(given), args.options)


def _name_and_file(text: str) -> tuple[str, Path]:
    model, _, file = text.partition("=")
    if not (model and file):
        raise ConfigError(f"--weights '{text}', expected NAME=FILE, such as RN50=/data/RN50.pt.")
    return model, Path(file).expanduser().absolute()


def _missing_data(names: set[str], root: str) -> list[str]:
    """Return what is missing of the data sets of the CoOp family; the embedded ones are drawn when they are used first."""
    missing = []
    for facts in [facts for facts in CATALOG.values() if any(same_dataset(facts.name, name) for name in names)]:
        found = inspect(DataFolder(facts, root))
        if found.state != "complete":
            way = f"python -m kdpl.datasets.prepare {facts.name} --root DATA (docs/datasets.md)"
            missing.append(f"the data set {facts.name} in --root '{root}', which is {found.state} ({found.note}): {way}.")
    return missing


def print_estimate(figure: Figure, setup: Setup) -> None:
    """Print what a training takes on this machine, or why that is not known."""
    step = setup.step(figure)
    argv = ["--config-file", str(step.config_file), "--dataset-config-file", str(figures.dataset_file(figure.dataset))]
    try:
        machine = estimate.find_machine("cuda" if torch.cuda.is_available() else "cpu")
        run = estimate.Run(estimate.parse_args(["--trainer", step.trainer, *argv, *step.options]))
        estimate.print_estimate(run, machine, estimate.summarise(run, machine))
    except (ValueError, OSError) as error:
        print(f"No estimate: {error}")


def check(wanted: Sequence[Figure], setup: Setup, notes: Sequence[str]) -> int:
    """Measure what is not measured yet, print and write the report; return the exit status."""
    done = [measurement_of(figure, setup, "stopped before it was started") for figure in wanted]
    for m in done:
        if m.figure.trains and not m.run:
            print_estimate(m.figure, setup)
    with stopping() as stop:
        for i, m in enumerate(done):
            label = f"{m.figure.method}, {', '.join(m.figure.models)}, {m.figure.dataset}"
            if m.run:
                print(f"skipped {label}: measured before", flush=True)
            elif stop.signal is None:
                print(f"measuring {label}", flush=True)
                outcome = work(Run(label, "", (m.step,)), stop, environment(os.cpu_count() or 1))
                done[i] = measurement_of(m.figure, setup, outcome.reason)
    text = figures.report(done, setup, notes)
    with atomic_write(setup.output / "check_weights.md", "w") as file:
        file.write(text)
    print("", text, f"The report is in {setup.output / 'check_weights.md'}", sep="\n")
    return exits.INTERRUPTED if stop.signal is not None else figures.exit_status(done)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    args = parse_args(list(sys.argv[1:] if argv is None else argv))
    try:
        found = all_figures(args)
        wanted = wanted_of(args, found)
        left = [f"{figure.method} of {figure.model} on {figure.dataset}" for figure in found if figure not in wanted]
        return check(wanted, prepare(args, wanted), [f"Not measured, on request: {', '.join(left)}."] if left else [])
    except (ValueError, OSError, KeyError, ImportError) as error:
        return exits.report(error, exits.BAD_INPUT)


if __name__ == "__main__":
    sys.exit(run_command(main))
