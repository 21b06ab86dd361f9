"""How often predictions are right, on photos whose labels were checked: `kdpl eval OUT --labels labels.csv`."""

import argparse
import csv
import dataclasses
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from tabulate import tabulate

from kdpl.common import exits
from kdpl.common.class_names import REJECTED
from kdpl.common.files import file_digest
from kdpl.common.messages import signed
from kdpl.common.outputs import check_files, open_output
from kdpl.common.safe_text import to_cell
from kdpl.photos.labels import LABELLED, TRAIN, Label, read_labels, trained_on
from kdpl.photos.prompts import add_prompt_flags, check_prompts, classifier_of
from kdpl.photos.waiting import doing

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier
    from kdpl.classifier.decoding import OnBad
    from kdpl.common.images import BadImageError


def apart(prompts: str, labels: list[Label], keep: bool) -> tuple[list[Label], list[Label], str]:
    """Return the labels of photos that a fit has not seen, of those it has seen without a label, and a line about others.

    Photos whose labels were learned are left out, whatever their names are now, unless `keep`; then all count as not seen.

    Raises:
        ValueError: none is left.
    """
    known = trained_on(prompts)
    if not known:
        about = "Which photos it was trained on is not recorded here: any that are among these make the accuracy too good."
        return labels, [], about
    train, labelled = (set(known[part].values()) for part in (TRAIN, LABELLED))
    there = [label.path for label in labels if os.path.isfile(label.path)]
    digest = {path: file_digest(path).hex() for path in there}
    count = sum(digest[path] in labelled for path in there)
    line = f"{count:,} of the {len(labels):,} photos were learned with their labels" if count else ""
    if keep:
        return labels, [], f"{line}; they are counted." if line else ""
    left = [label for label in labels if digest.get(label.path) not in labelled]
    if not left:
        raise ValueError(f"{line}: check others, such as new ones, or count these with --with-trained.")
    seen = [label for label in left if digest.get(label.path) in train]
    new = [label for label in left if digest.get(label.path) not in train]
    return new, seen, f"{line}; they are left out (--with-trained counts them)." if line else ""


class Judged(NamedTuple):
    """A photo with its label and what was predicted."""

    path: str
    label: str  # empty: known only to be none of what was predicted before
    predicted: str
    probability: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


def judge(classifier: "Classifier", labels: Sequence[Label], on_bad: "OnBad", reject: bool = False) -> tuple[list[Judged], int]:
    """Return the photos that can be judged, and how many cannot: their label is unknown, and the prediction is a new one."""
    judged, unknown, known = [], 0, {label.path: label for label in labels}
    for answer in classifier.answers(list(known), on_bad=on_bad, reject=reject):
        values, indices = answer.probabilities.max(dim=1)
        for path, p, i, out in zip(answer.images, values.tolist(), indices.tolist(), answer.rejected.tolist(), strict=True):
            name = REJECTED if out else classifier.classnames[i]
            if not known[path].label and name != known[path].predicted:
                unknown += 1
            else:
                judged.append(Judged(path, known[path].label, name, p))
    return judged, unknown


def by_sentence(classifier: "Classifier", sentence: str, judged: Sequence[Judged]) -> list[Judged]:
    """Return what the same CLIP says of the photos that are known to be of a class, by a hand-written sentence."""
    from kdpl.bundle import Decision
    from kdpl.classifier.classifier import Classifier

    with doing(f'Predicting with "{sentence}"'):
        decision = Decision(sentences=[sentence])
        bundle = dataclasses.replace(classifier.bundle, decision=decision, classnames=classifier.classnames)
        plain = Classifier(bundle, classifier.device, classifier.clip.name)
        return judge(plain, [Label(j.path, j.label, "") for j in judged if j.label], lambda image, error: None)[0]


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


def _print_mistakes(judged: Sequence[Judged], most: int) -> None:
    """Print the most frequent confusions and the most confident mistakes."""
    wrong = [j._replace(label=j.label or "(not known)") for j in judged if not j.right]
    if not wrong or not most:
        return
    confused = Counter((j.label, j.predicted) for j in wrong).most_common(most)
    confident = sorted(wrong, key=lambda j: -j.probability)[:most]
    print("", "Most frequent confusions", "", sep="\n")
    print(tabulate([(n, *pair) for pair, n in confused], ["photos", "label", "predicted"], disable_numparse=True))
    print("", "Most confident mistakes", "", sep="\n")
    rows = [(f"{j.probability:.2f}", j.predicted, j.label, j.path) for j in confident]
    print(tabulate(rows, ["probability", "predicted", "label", "photo"], disable_numparse=True))


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="kdpl eval", description="Accuracy of predictions on photos whose labels were checked, as the gallery saves them."
    )
    add = parser.add_argument
    add("prompts", metavar="OUT", help="output folder of a fit or a training")
    add("--labels", required=True, metavar="FILE", help="CSV with the columns path and label: labels.csv of the gallery")
    add("--csv", metavar="FILE", help="also write the whole confusion of classes: label, predicted, photos")
    add("--with-trained", action="store_true", help="count photos that the fit was trained on, too")
    add("--sentence", metavar="S", help="also the accuracy of this hand-written sentence, 'a photo of a {}.' say")
    add("--mistakes", type=int, default=10, metavar="N", help="confusions and mistakes that are printed (default: 10)")
    add_prompt_flags(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    args = parse_args(argv)
    unread: list[str] = []

    def on_bad(image: str, error: "BadImageError") -> None:
        unread.append(str(error))

    try:
        check_prompts(args.prompts)
        if not os.path.isfile(args.labels):
            raise FileNotFoundError(f"There is no file of labels '{args.labels}'.")
        check_files([args.csv], [args.labels, args.classnames, args.learner])
        classifier = classifier_of(args)
        given = read_labels(args.labels, classifier.classnames)
        check_files([args.csv], [label.path for label in given])
        new, seen, note = apart(args.prompts, given, args.with_trained)
        with doing(f"Predicting {len(new) + len(seen):,} photos"):
            judged, unknown = judge(classifier, [*new, *seen], on_bad, args.reject)
        if not judged:
            count = len(new) + len(seen)
            raise ValueError(f"None of the {count:,} photos of '{args.labels}' can be judged: {(unread or ['-'])[0]}")
        paths = {label.path for label in seen}
        judged_seen, judged_new = ([j for j in judged if (j.path in paths) == kind] for kind in (True, False))
        before = by_sentence(classifier, args.sentence, judged_new or judged_seen) if args.sentence else []
    except (ValueError, OSError) as error:
        return exits.report(error, exits.BAD_INPUT)
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
    if unknown:
        print(f"{unknown:,} photos are not judged: their label is not known, and the prediction is another than the marked one")
    for reason in unread[:10]:
        print(f"left out: {reason}", file=sys.stderr)
    if before:
        print(f"Gain over the sentence: {_gain(before, judged_new or judged_seen)}")
    _print_mistakes(judged, args.mistakes)
    if args.csv:
        try:
            _write_confusion(args.csv, judged)
        except OSError as error:
            return exits.report(error, exits.FAILED)
    return exits.SOME_UNREAD if unread else 0


def _write_confusion(path: str, judged: Sequence[Judged]) -> None:
    pairs = Counter((j.label, j.predicted) for j in judged)
    with open_output(path, "w", newline="") as file:
        cells = [(*map(to_cell, names), n) for names, n in sorted(pairs.items())]
        csv.writer(file).writerows([("label", "predicted", "photos"), *cells])
