"""Class-specific prompts with the flags of CoOp, on images that come with KDPL: no label is read before the last step.

Writes a folder of photos without labels, learns a prompt for each class from it, predicts other photos from the same source,
and only then compares the predictions with the truth, beside hand-written sentences.
"""

import argparse
import csv
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tabulate import tabulate

import kdpl
from kdpl.datasets.emoji.plans import TARGETS
from kdpl.photos.demo import scenes_by_one_artist, write_scenes
from kdpl.text.prompts import sentence_features
from kdpl.text.templates import fill

ROOT = Path(__file__).resolve().parent.parent
SENTENCES = ("a photo of a {}.", "an icon of a {}.")  # the default, and another


def run(*command: str) -> None:
    print("\n$ python", shlex.join(command), flush=True)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)


def accuracy(predicted: dict[str, str], truth: dict[str, str]) -> float:
    return 100 * sum(predicted[path] == name for path, name in truth.items()) / len(truth)


def by_sentence(classifier: kdpl.Classifier, paths: list[str], sentence: str) -> dict[str, str]:
    """Return what the CLIP without learned prompts says, by a hand-written sentence."""
    text = sentence_features(classifier.clip, fill(sentence, classifier.classnames))  # (C, d)
    best = (classifier.image_features(paths) @ text.cpu().T).argmax(dim=1).tolist()
    return {path: classifier.classnames[i] for path, i in zip(paths, best, strict=True)}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("output/your_photos"), help="folder for everything")
    parser.add_argument("--dataset", default="meals", choices=TARGETS, help="target of the embedded benchmark")
    parser.add_argument("--classes", type=int, default=1000, help="take the first ones alone")
    parser.add_argument("--epochs", type=int, help="of the training (default: those of the embedded settings)")
    args = parser.parse_args(argv)
    photos, new, out = (args.output / name for name in ("photos", "new_photos", "prompts"))

    write_scenes(photos, scenes_by_one_artist(args.dataset, "train", 16, args.classes))
    truth = write_scenes(new, scenes_by_one_artist(args.dataset, "test", 8, args.classes))
    names = args.output / "names.txt"
    names.write_text("\n".join(sorted(set(truth.values()))) + "\n", encoding="utf-8")

    run(
        f"{ROOT}/train.py", "--trainer", "KDPL_CoOp", "--seed", "1", "--root", str(photos), "--output-dir", str(out),
        "--dataset-config-file", f"{ROOT}/configs/datasets/image_folder.yaml",
        "--config-file", f"{ROOT}/configs/trainers/KDPL_CoOp/photos.yaml",
        "DATASET.CLASSNAMES", str(names), "MODEL.BACKBONE.NAME", "emoji_student", "INPUT.SIZE", "(64, 64)",
        "TRAINER.KDPL.TEACHER", "emoji_teacher", "TRAINER.KDPL.VIEWS", "1", "DATALOADER.NUM_WORKERS", "0",
        *(["OPTIM.MAX_EPOCH", str(args.epochs)] if args.epochs else []),
    )  # fmt: skip
    run(
        f"{ROOT}/predict.py", "--prompts", str(out), str(new), "--top", "3",
        "--csv", str(args.output / "predictions.csv"), "--html", str(args.output / "predictions.html"),
    )  # fmt: skip

    with open(args.output / "predictions.csv", encoding="utf-8", newline="") as file:
        predicted = {row["path"]: row["name"] for row in csv.DictReader(file)}
    classifier = kdpl.load(out)
    rows = [[f'"{s}"', accuracy(by_sentence(classifier, list(truth), s), truth)] for s in SENTENCES]
    rows.append(["prompts learned without labels", accuracy(predicted, truth)])
    print(f"\nAccuracy on {len(truth):,} new photos of {len(classifier.classnames)} classes, in percent\n")
    print(tabulate(rows, floatfmt=".1f"))
    print(f"\nLook at {args.output / 'predictions.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
