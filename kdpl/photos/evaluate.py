"""How often predictions are right, on photos whose labels were checked: `kdpl eval OUT --labels labels.csv`."""

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tabulate import tabulate

from kdpl.classifier.decision import REJECTED
from kdpl.common import exits
from kdpl.common.exits import report
from kdpl.common.files import atomic_write
from kdpl.common.images import BadImageError
from kdpl.common.messages import did_you_mean
from kdpl.photos.prompts import add_prompt_flags, classifier_of


class Label(NamedTuple):
    """What is known of a photo: its class; or, with an empty label, that `predicted` is wrong."""

    path: str
    label: str
    predicted: str


def read_labels(path: str | os.PathLike, names: list[str]) -> list[Label]:
    """Return the labels of a CSV file with the columns `path` and `label`, of the gallery also `right` and `predicted`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a table, names a class that there is not, or a photo twice with different labels.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of labels '{path}'.")
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file, strict=True))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"'{path}' is not a table of labels in UTF-8 ({error}).") from None
    if not rows or not {"path", "label"} <= rows[0].keys():
        raise ValueError(f"'{path}' has no rows with the columns path and label: expected a table such as the gallery saves.")
    known, labels = {*names, REJECTED}, {}
    for number, row in enumerate(rows, 2):
        label, predicted, right = (row.get(key) or "" for key in ("label", "predicted", "right"))
        if not row["path"] or (not label and right != "no"):
            raise ValueError(f"'{path}', line {number}: there is no {'label' if row['path'] else 'path'}.")
        if label and label not in known:
            raise ValueError(f"'{path}', line {number}: '{label}' is not one of the class names.{did_you_mean(label, names)}")
        found = Label(row["path"], label, predicted)
        if labels.setdefault(row["path"], found).label != label:
            both = f"'{labels[row['path']].label}' and '{label}'"
            raise ValueError(f"'{path}', line {number}: '{row['path']}' has two labels, {both}.")
    return list(labels.values())


class Judged(NamedTuple):
    """A photo with its label and what was predicted."""

    path: str
    label: str  # empty: known only to be none of what was predicted before
    predicted: str
    probability: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share in percent: 95 % of such intervals hold the true one, for few photos too."""
    p, spread = right / count, z * z / count
    middle, half = p + spread / 2, z * ((p * (1 - p) + spread / 4) / count) ** 0.5
    return max(0.0, 100 * (middle - half) / (1 + spread)), min(100.0, 100 * (middle + half) / (1 + spread))


def judge(labels: Sequence[Label], predictions: dict[str, tuple[str, float]]) -> tuple[list[Judged], int]:
    """Return the photos that can be judged, and how many cannot: their label is unknown, and the prediction is a new one."""
    judged, unknown = [], 0
    for label in labels:
        if label.path not in predictions:
            continue
        name, probability = predictions[label.path]
        if not label.label and name != label.predicted:
            unknown += 1
        else:
            judged.append(Judged(label.path, label.label, name, probability))
    return judged, unknown


def parse_args(argv: Sequence[str] | None = None, prog: str = "kdpl eval") -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=prog, description="Accuracy of predictions on photos whose labels were checked, as the gallery saves them."
    )
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training")
    add("--labels", required=True, metavar="FILE", help="CSV with the columns path and label: labels.csv of the gallery")
    add("--csv", metavar="FILE", help="also write the whole confusion of classes: label, predicted, photos")
    add("--mistakes", type=int, default=10, metavar="N", help="most confident mistakes that are printed (default: 10)")
    add_prompt_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str = "kdpl eval") -> int:
    """Run the command line; return the exit status."""
    args = parse_args(argv, prog)
    unread: list[str] = []
    try:
        classifier = classifier_of(args)
        labels = read_labels(args.labels, classifier.classnames)

        def on_bad(image: str, error: BadImageError) -> None:
            unread.append(str(error))

        predictions = {}
        for answer in classifier.answers([label.path for label in labels], on_bad=on_bad, reject=args.reject):
            values, indices = answer.probabilities.max(dim=1)
            for path, p, i, out in zip(answer.images, values.tolist(), indices.tolist(), answer.rejected.tolist(), strict=True):
                predictions[path] = (REJECTED if out else classifier.classnames[i], p)
        judged, unknown = judge(labels, predictions)
        if not judged:
            raise ValueError(f"None of the {len(labels):,} photos of '{args.labels}' can be judged: {(unread or ['-'])[0]}")
    except (ValueError, OSError) as error:
        return report(error, exits.BAD_INPUT)
    print_judgement(judged, unknown, unread, args.mistakes)
    if args.csv:
        try:
            with atomic_write(args.csv, "w", newline="") as file:
                rows = Counter((j.label, j.predicted) for j in judged)
                csv.writer(file).writerows([("label", "predicted", "photos"), *((*k, n) for k, n in sorted(rows.items()))])
        except OSError as error:
            return report(error, exits.FAILED)
    return exits.SOME_UNREAD if unread else 0


def print_judgement(judged: list[Judged], unknown: int, unread: list[str], most: int) -> None:
    """Print accuracy, confusions and mistakes."""
    right = sum(j.right for j in judged)
    low, high = wilson(right, len(judged))
    print(f"Accuracy: {100 * right / len(judged):.1f} % of {len(judged):,} photos (95 % interval: {low:.1f} to {high:.1f} %)")
    print("It is that of the photos you checked: choose them at random for the accuracy on all photos.")
    if unknown:
        print(f"{unknown:,} photos are not judged: their label is not known, and the prediction is another than the marked one")
    for reason in unread[:10]:
        print(f"left out: {reason}", file=sys.stderr)
    confused = Counter((j.label or "(not known)", j.predicted) for j in judged if not j.right)
    if confused:
        print("\nMost frequent confusions\n")
        pairs = [(n, *pair) for pair, n in confused.most_common(10)]
        print(tabulate(pairs, ["photos", "label", "predicted"], disable_numparse=True))
        wrong = sorted((j for j in judged if not j.right), key=lambda j: -j.probability)[:most]
        print("\nMost confident mistakes\n")
        rows = [(f"{j.probability:.2f}", j.predicted, j.label or "(not known)", j.path) for j in wrong]
        print(tabulate(rows, ["probability", "predicted", "label", "photo"], disable_numparse=True))


if __name__ == "__main__":
    sys.exit(main())
