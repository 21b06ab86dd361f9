"""Whether one view of a photo is enough: class vectors from the photo as at prediction, and from fixed random crops beside it.

    python benchmarks/emoji/photos_views.py --publish

On the validation scenes of search_photos.py, with its data sets, seeds, numbers of photos and settings; a crop has at least
half of the photo and may be mirrored. All have as many updates: in an epoch each photo is shown once, in one of its views. Runs
that are finished are not done again. Writes photos_views.csv, and with --publish its table into docs/benchmark.md.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev

from claims import write_csv
from search_photos import LEARNERS, MANY, SHOTS, VECTORS, Accuracies, Point, chosen, epochs_for, measure
from tabulate import tabulate

MEASURED = Path(__file__).resolve().parent / "photos_views.csv"
TRAINER = f"KDPL_{LEARNERS[VECTORS].trainer}"
CROPS = {"INPUT.TRANSFORMS": "['random_resized_crop', 'random_flip', 'normalize']", "INPUT.RRCROP_SCALE": "(0.5, 1.0)"}
AS_PREDICTED = "the photo as at prediction"
VIEWS = {AS_PREDICTED: {}, **{f"{n} random crop{'s' * (n > 1)}": CROPS | {"TRAINER.KDPL.VIEWS": str(n)} for n in (1, 4)}}
FIELDS = ("photos", "views", "accuracy", "gain", "standard error")


def run(output: Path, jobs: int) -> dict[int, dict[str, Accuracies]]:
    """Return by number of photos a class and by views the accuracies on validation scenes."""
    start = chosen()[VECTORS, TRAINER]
    points = [Point(start.rate, epochs_for(photos, start.epochs), photos) for photos in (SHOTS, MANY)]
    folders = {views: output / f"views_{n}" for n, views in enumerate(VIEWS)}
    return {
        point.photos: {
            views: measure(LEARNERS[VECTORS], [TRAINER], point, folders[views], jobs, options)[TRAINER]
            for views, options in VIEWS.items()
        }
        for point in points
    }


def rows_of(found: Mapping[int, Mapping[str, Accuracies]]) -> list[dict[str, str]]:
    """Return the rows of photos_views.csv: the mean, and the gain over the photo as at prediction with its standard error."""
    rows = []
    for photos, by_views in found.items():
        for views, accuracies in by_views.items():
            gains = [value - by_views[AS_PREDICTED][fold] for fold, value in accuracies.items()]
            error = stdev(gains) / len(gains) ** 0.5
            numbers = (fmean(accuracies.values()), fmean(gains), error)
            rows.append(dict(zip(FIELDS, (str(photos), views, *(f"{number:.2f}" for number in numbers)), strict=True)))
    return rows


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Return the table of the page."""
    body = [
        [row["photos"], row["views"], f"{float(row['accuracy']):.1f}"]
        + ([f"{float(row['gain']):+.1f} ± {float(row['standard error']):.1f}"] if row["views"] != AS_PREDICTED else [""])
        for row in rows
    ]
    return tabulate(body, ["photos a class", "views of each", "accuracy", "gain"], "github", disable_numparse=True) + "\n"


def committed() -> list[dict[str, str]]:
    with open(MEASURED, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def blocks_of(rows: Sequence[Mapping[str, str]]) -> dict[tuple[Path, str], str]:
    """Return what the benchmark's page shows."""
    from run import DOCS

    return {(DOCS / "benchmark.md", "photos_views"): table(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/benchmark/photos_views"))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once (default: 2)")
    parser.add_argument("--publish", action="store_true", help="also write the table into docs/benchmark.md")
    args = parser.parse_args()
    rows = rows_of(run(args.output, args.jobs))
    print(table(rows))
    if args.publish:
        from run import write_blocks

        write_csv(MEASURED, rows)
        write_blocks(blocks_of(rows))


if __name__ == "__main__":
    main()
