"""Accuracy on photos whose labels were checked, `kdpl eval OUT --labels labels.csv`; tables of labels and records of a fit."""

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
from kdpl.photos.commands import add_prompt_flags, check_prompts, classifier_of, doing

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

PHOTOS = "photos.json"  # in the folder of a fit: which photos were for what, with the digests of their contents
TEACHER = "teacher.json"  # beside it: the name that the teacher sees on each photo, by the digest of its content
GIVEN = "labels.json"  # of `kdpl open`: the name that a person gave a photo, by the same; "": none of the names
TRAIN, CHOSEN_BY, REPORTED = "train", "chosen by", "reported"  # the parts of the photos: the last two are held out
LABELLED = "labelled"  # a part of the first
LARGEST_RECORD = 2**31  # bytes
SHOWN = 10  # confusions, mistakes and unreadable photos


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
        photo, label, predicted, right = (from_cell(row.get(key) or "") for key in ("path", "label", "predicted", "right"))
        if not photo or (not label and right != "no"):
            raise ValueError(f"'{path}', line {number}: there is no {'label' if photo else 'path'}.")
        if label and label not in known:
            raise ValueError(f"'{path}', line {number}: '{label}' is not one of the class names.{did_you_mean(label, names)}")
        first = labels.setdefault(os.path.realpath(photo), Label(photo, label, predicted))  # one photo may have two spellings
        if first.label != label:
            raise ValueError(f"'{path}', line {number}: '{photo}' has two labels, '{first.label}' and '{label}'.")
    return list(labels.values())


def read_record(prompts: str | os.PathLike, name: str) -> dict:
    """Return a record of a fit, PHOTOS, TEACHER or GIVEN, beside its prompts; empty for other trainings.

    Raises:
        ValueError: it cannot be read.
    """
    folder = Path(prompts)
    path = (folder.parent if folder.is_file() else folder) / name
    if not path.is_file():
        return {}
    try:
        found = read_json(path, LARGEST_RECORD)
        form = {TRAIN: dict, LABELLED: dict} if name == PHOTOS else {}
        whole = isinstance(found, dict) and all(isinstance(found.get(part), kind) for part, kind in form.items())
        if whole and all(isinstance(value, dict if form else str) for value in found.values()):
            return found
        reason = "it holds something else"
    except (ValueError, OSError) as error:
        reason = str(error)
    raise ValueError(f"'{name}' beside '{prompts}' is not the record of a fit ({reason}): run the fit again to write it.")


def apart(prompts: str, labels: list[Label]) -> tuple[list[Label], list[Label], str]:
    """Return the labels of photos that a fit has not seen, of those it has seen without a label, and a line about others.

    Photos whose labels were learned are left out, whatever their names are now.

    Raises:
        ValueError: none is left.
    """
    parts = read_record(prompts, PHOTOS)
    if not parts:
        about = "Which photos it was trained on is not recorded here: any that are among these make the accuracy too good."
        return labels, [], about
    train, labelled = (set(parts[part].values()) for part in (TRAIN, LABELLED))
    there = [label.path for label in labels if os.path.isfile(label.path)]
    digest = {path: file_digest(path).hex() for path in there}
    left = [label for label in labels if digest.get(label.path) not in labelled]
    line = f"{len(labels) - len(left):,} of the {len(labels):,} photos were learned with their labels"
    if not left:
        raise ValueError(f"{line}: check others, such as new ones.")
    seen = [label for label in left if digest.get(label.path) in train]
    new = [label for label in left if digest.get(label.path) not in train]
    return new, seen, f"{line}; they are left out." if len(left) < len(labels) else ""


class Judged(NamedTuple):
    """A photo with its label and what was predicted."""

    path: str
    label: str  # empty: known only to be none of what was predicted before
    predicted: str
    probability: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


def judge(classifier: "Classifier", labels: Sequence[Label], unread: list[str], reject: bool = False) -> list[Judged]:
    """Return the photos that can be judged: those that can be read, without a new prediction where another was marked wrong."""
    judged, known = [], {label.path: label for label in labels}
    for answer in classifier.stream(list(known), on_bad=lambda image, error: unread.append(str(error)), reject=reject):
        values, indices = answer.probabilities.max(dim=1)
        for path, p, i, out in zip(answer.images, values.tolist(), indices.tolist(), answer.rejected.tolist(), strict=True):
            name = REJECTED if out else classifier.classnames[i]
            if known[path].label or name == known[path].predicted:
                judged.append(Judged(path, known[path].label, name, p))
    return judged


def by_sentence(classifier: "Classifier", sentence: str, judged: Sequence[Judged]) -> list[Judged]:
    """Return what the same CLIP says of the photos that are known to be of a class, by a hand-written sentence."""
    from kdpl.bundle import Decision
    from kdpl.classifier.classifier import Classifier

    with doing(f'Predicting with "{sentence}"'):
        decision = Decision(sentences=[sentence])
        bundle = dataclasses.replace(classifier.bundle, decision=decision, classnames=classifier.classnames)
        plain = Classifier(bundle, classifier.device, classifier.clip.name)
        return judge(plain, [Label(j.path, j.label, "") for j in judged if j.label], [])


def wilson(right: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval of a share in percent: 95 % of such intervals hold the true one, for few photos too."""
    p, spread = right / count, z * z / count
    middle, half = p + spread / 2, z * ((p * (1 - p) + spread / 4) / count) ** 0.5
    return max(0.0, 100 * (middle - half) / (1 + spread)), min(100.0, 100 * (middle + half) / (1 + spread))


def _share(judged: Sequence[Judged]) -> str:
    right = sum(j.right for j in judged)
    low, high = wilson(right, len(judged))
    return f"{100 * right / len(judged):.1f} % of {len(judged):,} photos (95 % interval: {low:.1f} to {high:.1f} %)"


def _gain(before: Sequence[Judged], judged: Sequence[Judged]) -> str:
    """Return the gain over a sentence on the same photos."""
    after = {j.path: j.right for j in judged}
    gap = [after[j.path] - j.right for j in before]
    mean = sum(gap) / len(gap)
    error = 2 * (sum((g - mean) ** 2 for g in gap) / len(gap) ** 2) ** 0.5
    return f"{signed(100 * mean, 1)} ± {100 * error:.1f} points"


def _print_mistakes(judged: Sequence[Judged]) -> None:
    """Print the most frequent confusions and the most confident mistakes."""
    wrong = [j._replace(label=j.label or "(not known)") for j in judged if not j.right]
    if not wrong:
        return
    confused = Counter((j.label, j.predicted) for j in wrong).most_common(SHOWN)
    print("", "Most frequent confusions", "", sep="\n")
    print(tabulate([(n, *pair) for pair, n in confused], ["photos", "label", "predicted"], disable_numparse=True))
    confident = sorted(wrong, key=lambda j: -j.probability)[:SHOWN]
    rows = [(f"{j.probability:.2f}", j.predicted, j.label, j.path) for j in confident]
    print("", "Most confident mistakes", "", sep="\n")
    print(tabulate(rows, ["probability", "predicted", "label", "photo"], disable_numparse=True))


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    try:
        return evaluate(args)
    except (ValueError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)


def evaluate(args: argparse.Namespace, mistakes: bool = True) -> int:
    """Evaluate as the command line asks; return the exit status."""
    unread: list[str] = []
    check_prompts(args.prompts, [args.labels])
    if not os.path.isfile(args.labels):
        raise FileNotFoundError(f"There is no file of labels '{args.labels}'.")
    check_files([args.csv], [args.labels, args.classnames, *args.learner])
    classifier = classifier_of(args)
    given = read_labels(args.labels, classifier.classnames)
    check_files([args.csv], [label.path for label in given])
    new, seen, note = apart(args.prompts, given)
    with doing(f"Predicting {len(new) + len(seen):,} photos"):
        judged_new, judged_seen = (judge(classifier, some, unread, args.reject) for some in (new, seen))
    judged = judged_new + judged_seen
    if not judged:
        count = len(new) + len(seen)
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
        print("That is nearer to the teacher's than the accuracy on new photos is.")
    print("It is that of the photos you checked: choose them at random for the accuracy on all photos.")
    if unknown := len(new) + len(seen) - len(judged) - len(unread):
        print(f"{unknown:,} photos are not judged: their label is not known, and the prediction is another than the marked one")
    for reason in unread[:SHOWN]:
        print(f"left out: {reason}", file=sys.stderr)
    if before:
        print(f"Gain over the sentence: {_gain(before, judged_new or judged_seen)}")
    if mistakes:
        _print_mistakes(judged)
    if args.csv:
        pairs = Counter((j.label, j.predicted) for j in judged)
        with open_output(args.csv, "w", newline="") as file:
            cells = [(*map(to_cell, names), n) for names, n in sorted(pairs.items())]
            csv.writer(file).writerows([("label", "predicted", "photos"), *cells])
    return exits.SOME_UNREAD if unread else 0
