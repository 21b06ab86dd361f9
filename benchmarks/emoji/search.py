"""Choose every learner's rate for the embedded benchmark: `python benchmarks/emoji/search.py`.

The same search for all trainers, with labels and without: prompts are learned on the base classes of four target data sets
that no base-to-new table shows, and the mean of H on their validation images, over the four and two seeds, decides. If the
best rate is the smallest or the largest, one more beyond it is tried. Test images are never read.

Validation images have the artists of the training images, test images a third one. So the search also measures, but does
not decide by, what a rate does for an artist who was left out: learned from the scenes of one artist, with as many
updates, and tested on all scenes of the other, and the other way round.

Runs that are finished are not done again. Writes all points to search.csv, and the chosen rates into
configs/trainers/*/emoji.yaml.
"""

import argparse
import csv
import re
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean, stdev

from kdpl.common.files import atomic_write
from kdpl.experiments.report.runs import read_scores
from kdpl.experiments.sweep.local import run_local
from kdpl.experiments.sweep.plan import sweep_of

HERE = Path(__file__).resolve().parent
CONFIGS = HERE.parents[1] / "configs" / "trainers"
CHOSEN = HERE / "search.csv"
LEARNERS = ("CoOp", "CoCoOp", "VPT", "MaPLe", "PromptSRC", "IVLP")
TRAINERS = tuple(prefix + learner for learner in LEARNERS for prefix in ("", "KDPL_"))
DATASETS = ("emoji_sky", "emoji_office", "emoji_creatures", "emoji_places")
ARTISTS = ("noto", "fluent")
RATES = ("0.0004", "0.002", "0.01", "0.05")
BEYOND = {"0.0004": "0.00008", "0.05": "0.25"}  # more rates, where the best is the last
EPOCHS, COCOOP_EPOCHS = 5, 2  # of the configurations; CoCoOp's batches are a quarter of the others'

Accuracies = dict[tuple[str, int], float]  # H by data set and seed


def measure(trainers: Sequence[str], rate: str, output: Path, jobs: int, left_out: str = "") -> dict[str, Accuracies]:
    """Return each trainer's H on validation images, or on all images of an artist who is left out of the training."""
    found: dict[str, Accuracies] = {}
    for cocoop in (False, True):
        some = [trainer for trainer in trainers if trainer.endswith("CoCoOp") == cocoop]
        if not some:
            continue
        sweep = sweep_of(content(some, rate, output, jobs, left_out), "search", "the search")
        if run_local(sweep):
            raise SystemExit("Some runs have not finished. The same command resumes them.")
        scores, _ = read_scores([sweep.output], "test" if left_out else "val")
        for trainer in some:
            of = {(s.tested.dataset, s.seed, s.tested.classes): s.accuracy for s in scores if s.method.name == trainer}
            if len(of) != 2 * len(DATASETS) * len(sweep.seeds):
                raise SystemExit(
                    f"{trainer} has {len(of)} results in {sweep.output}, expected those of both halves of {len(DATASETS)} "
                    f"data sets and {len(sweep.seeds)} seeds."
                )
            halves = {(name, seed): (of[name, seed, "base"], of[name, seed, "new"]) for name, seed, _ in of}
            found[trainer] = {fold: 2 * base * new / (base + new) for fold, (base, new) in halves.items()}
    return found


def content(trainers: Sequence[str], rate: str, output: Path, jobs: int, left_out: str) -> dict:
    """Return a sweep of these trainers, as a sweep's file has it."""
    options = {
        "OPTIM.LR": rate,
        "TRAINER.KDPL.VIEWS": "8",
        "TRAINER.KDPL.CACHE_DIR": str(output / "features"),
    }
    if left_out:  # half the images, twice the epochs
        (source,) = set(ARTISTS) - {left_out}
        options |= {
            "OPTIM.MAX_EPOCH": str(2 * epochs_of(trainers[0])),
            "OPTIM.WARMUP_EPOCH": "2",
            "DATASET.SOURCE_DOMAINS": f"('{source}',)",
            "DATASET.TARGET_DOMAINS": f"('{left_out}',)",
        }
    else:
        options |= {"TEST.SPLIT": "val"}
    return {
        "protocol": "base2new",
        "trainers": list(trainers),
        "datasets": list(DATASETS),
        "seeds": ["1"] if left_out else ["1", "2"],
        "config": "emoji",
        "output": str(output / f"lr_{rate}{f'_without_{left_out}' if left_out else ''}"),
        "options": options,
        "executor": {"warm": "true", "gpus": "0", "jobs": str(jobs)},
    }


def epochs_of(trainer: str) -> int:
    return COCOOP_EPOCHS if trainer.endswith("CoCoOp") else EPOCHS


def best(points: Mapping[str, Accuracies]) -> str:
    """Return the rate of highest mean H; of equal ones the smallest."""
    return max(points, key=lambda rate: (fmean(points[rate].values()), -float(rate)))


def search(output: Path, jobs: int) -> dict[str, dict[str, Accuracies]]:
    """Return by trainer and rate the H on validation images."""
    found: dict[str, dict[str, Accuracies]] = {trainer: {} for trainer in TRAINERS}

    def add(trainers: Sequence[str], rate: str) -> None:
        for trainer, accuracies in measure(trainers, rate, output, jobs).items():
            found[trainer][rate] = accuracies

    for rate in RATES:
        add(TRAINERS, rate)
    for edge, rate in BEYOND.items():
        add([trainer for trainer in TRAINERS if best(found[trainer]) == edge], rate)
    return found


def on_artist_left_out(output: Path, jobs: int) -> dict[tuple[str, str], float]:
    """Return by trainer and rate the H on an artist who was left out, mean over both."""
    found: dict[tuple[str, str], list[float]] = {}
    for rate, artist in product(RATES, ARTISTS):
        for trainer, accuracies in measure(TRAINERS, rate, output, jobs, artist).items():
            found.setdefault((trainer, rate), []).extend(accuracies.values())
    return {point: fmean(values) for point, values in found.items()}


def write_table(found: Mapping[str, Mapping[str, Accuracies]], left_out: Mapping[tuple[str, str], float]) -> None:
    """Write all points: the mean H, its distance to the best rate's with the standard error, and H of artists left out."""
    with atomic_write(CHOSEN, "w") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trainer", "rate", "H", "below", "standard error", "chosen", "H of an artist left out"])
        for trainer, points in found.items():
            top = best(points)
            for rate, accuracies in points.items():
                below = [points[top][fold] - value for fold, value in accuracies.items()]
                numbers = (fmean(accuracies.values()), fmean(below), stdev(below) / len(below) ** 0.5)
                other = left_out.get((trainer, rate))
                writer.writerow(
                    [
                        trainer,
                        rate,
                        *(f"{n:.2f}" for n in numbers),
                        "yes" if rate == top else "",
                        "" if other is None else f"{other:.2f}",
                    ]
                )


def chosen_rates() -> dict[str, str]:
    """Return by trainer the rate that search.csv says."""
    with open(CHOSEN, encoding="utf-8", newline="") as file:
        return {row["trainer"]: row["rate"] for row in csv.DictReader(file) if row["chosen"]}


def write_configs() -> None:
    """Write the chosen rates into the trainers' configuration files; KgCoOp has those of CoOp."""
    rates = chosen_rates()
    for trainer, rate in {**rates, "KgCoOp": rates["CoOp"], "KDPL_KgCoOp": rates["KDPL_CoOp"]}.items():
        path = CONFIGS / trainer / "emoji.yaml"
        text = re.sub(r"(?m)^  LR: .*$", f"  LR: {rate}", path.read_text(encoding="utf-8"))
        with atomic_write(path, "w") as file:
            file.write(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/search"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    args = parser.parse_args()
    found = search(args.output, args.jobs)
    write_table(found, on_artist_left_out(args.output, args.jobs))
    write_configs()
    print(CHOSEN.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
