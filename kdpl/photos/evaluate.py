"""Accuracy on photos whose labels were checked: `kdpl eval OUT --labels labels.csv`; tables of labels and records of a fit."""

import argparse
import csv
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tabulate import tabulate

from kdpl.common import exits
from kdpl.common.files import file_digest
from kdpl.common.messages import did_you_mean, signed
from kdpl.common.outputs import check_files, open_output
from kdpl.common.safe_text import REJECTED, from_cell, read_json, to_cell
from kdpl.photos.commands import add_prompt_flags, check_prompts, classifier_of, doing, guarded

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

# Records of a fit, beside its prompts; by the digest of a photo's content
PHOTOS = "photos.json"  # what was learned from: the label that was learned, "" of a photo without one
TEACHER = "teacher.json"  # the name that the teacher sees
GIVEN = "labels.json"  # of `kdpl open`: the name that a person gave; "": none of the names
LARGEST_RECORD = 2**31  # bytes
SHOWN = 10  # confusions, mistakes and unreadable photos


class Label(NamedTuple):
    """What is known of a photo: its class; or, with an empty label, that what was predicted is wrong."""

    path: str
    label: str
    predicted: str

    @property
    def right(self) -> bool:
        return self.label == self.predicted


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
        photo, label, predicted, right = (from_cell(row.get(key) or "") for key in ("path", "label", "predicted", "right"))
        if not photo or (not label and right != "no"):
            raise ValueError(f"'{path}', line {number}: there is no {'label' if photo else 'path'}.")
        if label and label not in known:
            raise ValueError(f"'{path}', line {number}: '{label}' is not one of the class names.{did_you_mean(label, names)}")
        first = labels.setdefault(os.path.realpath(photo), Label(photo, label, predicted))  # one photo may have two spellings
        if first.label != label:
            raise ValueError(f"'{path}', line {number}: '{photo}' has two labels, '{first.label}' and '{label}'.")
    return list(labels.values())


def read_record(prompts: str | os.PathLike, name: str) -> dict[str, str]:
    """Return a record of a fit, PHOTOS, TEACHER or GIVEN, beside its prompts; empty for other trainings.

    Raises:
        ValueError: it cannot be read.
    """
    folder = Path(prompts)
    path = (folder.parent if folder.is_file() else folder) / name
    if not path.is_file():
        return {}
    found = read_json(path, LARGEST_RECORD)
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise ValueError(f"'{path}' is not the record of a fit: run the fit again to write it.")
    return found


def apart(prompts: str, labels: list[Label]) -> tuple[list[Label], list[Label], str]:
    """Return the labels of photos that a fit has not seen, of those it has seen without a label, and a line about others.

    Photos whose labels were learned are left out, whatever their names are now.

    Raises:
        ValueError: none is left.
    """
    learned = read_record(prompts, PHOTOS)
    if not learned:
        about = "Which photos it was trained on is not recorded here: any that are among these make the accuracy too good."
        return labels, [], about
    new, seen = [], []
    for label in labels:
        known = learned.get(file_digest(label.path).hex()) if os.path.isfile(label.path) else None
        if not known:
            (new if known is None else seen).append(label)
    out = len(labels) - len(new) - len(seen)
    line = f"{out:,} of the {len(labels):,} photos were learned with their labels"
    if not new and not seen:
        raise ValueError(f"{line}: check others, such as new ones.")
    return new, seen, f"{line}; they are left out." if out else ""


def judge(classifier: "Classifier", labels: Sequence[Label], unread: list[str], reject: bool = False) -> list[Label]:
    """Return the photos that can be judged: those that can be read, without a new prediction where another was marked wrong."""
    judged, known = [], {label.path: label for label in labels}
    for answer in classifier.stream(list(known), on_bad=lambda image, error: unread.append(str(error)), reject=reject):
        likeliest = answer.probabilities.argmax(dim=1).tolist()
        for path, i, out in zip(answer.images, likeliest, answer.rejected.tolist(), strict=True):
            name = REJECTED if out else classifier.classnames[i]
            if known[path].label or name == known[path].predicted:
                judged.append(known[path]._replace(predicted=name))
    return judged


def by_sentence(classifier: "Classifier", sentence: str, judged: Sequence[Label]) -> list[Label]:
    """Return what the same CLIP says of the photos that are known to be of a class, by a hand-written sentence."""
    from kdpl.bundle import Decision
    from kdpl.classifier.classifier import Classifier

    decision = Decision(sentences=[sentence])
    bundle = dataclasses.replace(classifier.bundle, decision=decision, classnames=classifier.classnames)
    plain = Classifier(bundle, classifier.device, classifier.clip.name)
    return judge(plain, [label for label in judged if label.label], [])


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share in percent: 95 % of such intervals hold the true one, for few photos too."""
    p, spread = right / count, z * z / count
    middle, half = p + spread / 2, z * ((p * (1 - p) + spread / 4) / count) ** 0.5
    return max(0.0, 100 * (middle - half) / (1 + spread)), min(100.0, 100 * (middle + half) / (1 + spread))


def _share(judged: Sequence[Label]) -> str:
    right = sum(j.right for j in judged)
    low, high = wilson(right, len(judged))
    return f"{100 * right / len(judged):.1f} % of {len(judged):,} photos (95 % interval: {low:.1f} to {high:.1f} %)"


def _gain(before: Sequence[Label], judged: Sequence[Label]) -> str:
    """Return the gain over a sentence on the same photos."""
    after = {j.path: j.right for j in judged}
    gap = [after[j.path] - j.right for j in before]
    mean = sum(gap) / len(gap)
    error = 2 * (sum((g - mean) ** 2 for g in gap) / len(gap) ** 2) ** 0.5
    return f"{signed(100 * mean, 1)} ± {100 * error:.1f} points"


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl eval", description="Accuracy of predictions on photos whose labels were checked, as the gallery saves them."
    )
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training")
    add("--labels", required=True, metavar="FILE", help="CSV with the columns path and label: labels.csv of the gallery")
    add("--csv", metavar="FILE", help="also write the whole confusion of classes: label, predicted, photos")
    add("--sentence", metavar="S", help="also the accuracy of this hand-written sentence, 'a photo of a {}.' say")
    add_prompt_flags(parser)
    return parser.parse_args(argv)


@guarded
def main(argv: Sequence[str] | None = None) -> int:
    """Run `kdpl eval`; return its exit status."""
    args = parse_args(argv)
    check_files([args.csv], [args.labels, args.classnames, *args.learner])
    judged, unread = print_accuracy(args)
    counts = Counter((j.label or "(not known)", j.predicted) for j in judged)
    confused = [(n, *pair) for pair, n in counts.most_common() if pair[0] != pair[1]][:SHOWN]
    if confused:
        print("", tabulate(confused, ["photos", "label", "predicted"], disable_numparse=True), sep="\n")
    if args.csv:
        with open_output(args.csv, "w", newline="") as file:
            rows = ((to_cell(label), to_cell(predicted), n) for (label, predicted), n in sorted(counts.items()))
            csv.writer(file).writerows([("label", "predicted", "photos"), *rows])
    return exits.SOME_UNREAD if unread else 0


def print_accuracy(args: argparse.Namespace) -> tuple[list[Label], list[str]]:
    """Print the accuracy that the command line asks for; return the judged photos, and why others cannot be read."""
    check_prompts(args.prompts)
    if not os.path.isfile(args.labels):
        raise FileNotFoundError(f"There is no file of labels '{args.labels}'.")
    classifier = classifier_of(args)
    new, seen, note = apart(args.prompts, read_labels(args.labels, classifier.classnames))
    unread: list[str] = []
    with doing(f"Predicting {len(new) + len(seen):,} photos"):
        judged_new, judged_seen = (judge(classifier, some, unread, args.reject) for some in (new, seen))
    judged, count = judged_new + judged_seen, len(new) + len(seen)
    if not judged:
        raise ValueError(f"None of the {count:,} photos of '{args.labels}' can be judged: {(unread or ['-'])[0]}")
    before = by_sentence(classifier, args.sentence, judged_new or judged_seen) if args.sentence else []
    if note:
        print(note)
    if before:
        print(f'With "{args.sentence}": {_share(before)}')
    if judged_new:
        print(f"Accuracy: {_share(judged_new)}")
    if judged_seen:
        print(f"Accuracy on photos that the fit has seen, without a label: {_share(judged_seen)}")
    print("It is that of the photos you checked: choose them at random for the accuracy on all photos.")
    if unknown := count - len(judged) - len(unread):
        print(f"{unknown:,} photos are not judged: their label is not known, and the prediction is another than the marked one")
    for reason in unread[:SHOWN]:
        print(f"left out: {reason}", file=sys.stderr)
    if before:
        print(f"Gain over the sentence: {_gain(before, judged_new or judged_seen)}")
    return judged, unread
