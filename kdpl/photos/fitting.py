"""A fit, from its arguments to what is in OUT: list photos, look at them, learn, compare, write. A refit is its second half."""

import argparse
import io
import json
import math
import os
import random
import sys
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from yacs.config import CfgNode

from kdpl.bundle import Bundle, Decision, read_bundle, write_bundle
from kdpl.bundle.learned import refuse_doubles
from kdpl.classifier.classifier import Classifier
from kdpl.clip.names import resolve
from kdpl.common import sources
from kdpl.common.files import atomic_write, name_below, remove_parts
from kdpl.common.images import list_images, others_line
from kdpl.common.outputs import FIT, check_folder, occupy, take_folder
from kdpl.common.safe_text import REJECTED
from kdpl.config.checks import check_values
from kdpl.config.command_line import CONFIGS
from kdpl.config.defaults import merged_cfg, node_of
from kdpl.config.keys import ConfigError
from kdpl.config.manifest import OtherRunError
from kdpl.distill.objective import Labelled
from kdpl.distill.views import ViewFeatures
from kdpl.photos.answers import Logits, decide, head_bundle, paragraph, refit, split
from kdpl.photos.commands import doing, teacher_name
from kdpl.photos.evaluate import PHOTOS, TEACHER, read_labels
from kdpl.photos.pile import FILE, Pile, Towers, Words, begin_pile, complete, read_pile
from kdpl.students.kernel_head import fit_factor
from kdpl.text.prompts import same_names, sentence_features
from kdpl.text.templates import DEFAULT, fill

LEAST = 4  # different photos: two to learn from, one to choose by and one to report on
SHOWN = 10  # unreadable photos that are listed

LEARNERS = {  # of --learn: how it is called, its trainer and that one's settings
    "TaskRes": ("class vectors", "KDPL_TaskRes", "photos.yaml"),
    "CSC": ("class-specific prompts", "KDPL_CoOp", "photos.yaml"),
    "CoOp": ("shared prompts", "KDPL_CoOp", "photos_shared.yaml"),
}
LEAST_EPOCHS = 12  # of a training, of any number of photos
EPOCHS_AT = 16  # photos of each name, for which the epochs of the settings hold
STEPS = (300, 3000)  # of a training: at least, at most
TEXT_SIZE = 1.9  # root mean square of the values in the text features for which the rate of class vectors holds


def fit(args: argparse.Namespace, names: list[str]) -> bool:
    """Fit as the command line asks; return whether all photos could be read.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    photos, output, teacher = sources.absolute(args.photos), Path(args.output), teacher_name(args.teacher)
    refuse_doubles(names, f"'{args.names}'")
    resolve(args.student), resolve(teacher)
    before = read_pile(output)
    now = {"folder": ("PHOTOS", str(photos)), "student": ("--student", args.student), "teacher": ("--teacher", teacher)}
    for key, (flag, value) in now.items():
        if before.facts.get(key, value) != value:
            was = f"'{output}' has features for {flag} '{before.facts[key]}', not '{value}'"
            raise ConfigError(f"{was}: choose another folder (-o).")
    with doing(f"Looking through '{photos}'", quiet=args.quiet):
        listing = list_images(photos)
    order = [path.relative_to(photos).as_posix() for path in listing.images]
    labels = labels_of(args.labels, names, photos, set(order))
    check_count(order, labels, photos)
    random.Random(1).shuffle(order)
    others = others_line(listing.others)
    known = f", {len(labels):,} of them with labels" if labels else ""
    print(f"{len(order):,} photos{others and f' ({others} not read)'}{known}; {len(names):,} class names")
    if args.quick:
        order.sort(key=lambda path: path not in labels)  # which keeps the random order otherwise
        order = order[: max(200, 12 * len(names), 2 * len(labels))]
        print(f"{len(order):,} of them are looked at")
    unread: list[str] = []

    def leave_out(reason: object) -> None:
        unread.append(str(reason))
        if len(unread) <= SHOWN:
            print(f"left out: {reason}", file=sys.stderr)

    for reason in listing.unreadable.values():
        leave_out(reason)
    print(f"student {args.student}, teacher {teacher}", flush=True)
    if args.student == teacher:
        print("Student and teacher are the same CLIP: there is nothing to learn from it that the student does not know.")

    take_folder(output, FIT)
    occupy(output)
    remove_parts(output)
    words = Words(args.student, teacher, args.template)
    with doing(f"Loading {args.student} and {teacher}", quiet=args.quiet):
        refuse_same(words, names)
        pile = begin_pile(before, words, photos)
    if count := len(pile.of(order)):
        print(f"{count:,} of {len(order):,} photos are known: their features are in '{output / FILE}'", flush=True)
    with doing("Looking at photos", len(order) - count, "photo", args.quiet) as bar:
        pile = complete(pile, photos, order, Towers(words), output, lambda path, error: leave_out(error), bar.update)
    if (pile.facts, pile.paths) != (before.facts, before.paths):
        pile.write(output)  # what this fit was of, which a refit reads
    if unread:
        print(f"{len(unread):,} photos could not be read")
    learners = LEARNERS if args.best else [args.learn] if args.learn else []
    conclude(output, different(pile, labels), words, names, labels, learners, args.quiet)
    return not unread


def refit_in(source: Path, output: Path, args: argparse.Namespace, names: list[str]) -> int:
    """Fit names and labels to the photos of a fit, from their features; return how many photos there are.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    whole = read_pile(source)
    facts = whole.facts
    refuse_doubles(names, f"'{args.names}'")
    check_folder(output, FIT, facts["folder"])
    labels = labels_of(args.labels, names, Path(facts["folder"]), set(whole.paths))
    pile = different(whole, labels)
    words = Words(facts["student"], facts["teacher"], facts["template"])
    refuse_same(words, names)
    take_folder(output, FIT)
    occupy(output)
    if output.resolve() != source.resolve():
        whole.write(output)
    conclude(output, pile, words, names, labels, quiet=args.quiet)
    return len(pile)


def conclude(
    output: Path,
    pile: Pile,
    words: Words,
    names: list[str],
    labels: Mapping[str, str],
    learners: Collection[str] = (),
    quiet: bool = False,
) -> None:
    """Learn names from different photos, print whether that helped, and write what is used.

    Written are bundle and card, the names, and records: what was learned from, and what the teacher sees.
    """
    train_rows = split(pile.paths, labels).train
    trained = {
        LEARNERS[key][0]: train(key, output / "learned" / key, pile, train_rows, names, labels, words) for key in learners
    }
    with doing("Solving the head, and comparing", quiet=quiet):
        fitted = refit(pile, words, names, labels, others={title: logits for title, (_, logits) in trained.items()})
    used, folder = fitted.used, Path(pile.facts["folder"])
    # Of a head the sentence says whether a photo is any of the names.
    texts = [words.of_student(names, sentence) for sentence in used.sentences or [words.template]]
    text, scale = F.normalize(torch.stack(texts).mean(0), dim=-1), pile.facts["student_scale"]
    bundle, logits = trained.get(used.label, (None, lambda features: scale * features @ text.T))
    decision, line = decide(pile, fitted, logits)
    print(fitted.words())
    print("", "Photos to look at, of whose names it is least sure:", "", sep="\n")
    for path, first, second in fitted.doubtful:
        print(f"  {name_below(folder / path, Path.cwd())}: {first}, or {second}?")
    print("", paragraph(line), sep="\n")

    held = torch.cat([used.chosen_by.logits, used.reported.logits])
    temperature = 1 / fit_factor(held, fitted.teacher[fitted.parts.chosen_by + fitted.parts.reported])
    decision = replace(decision, sentences=used.sentences, temperature=temperature, classnames=names)
    rows = train_rows if bundle else range(len(pile))
    if bundle:
        bundle = replace(bundle, decision=decision)
    else:
        bundle = head_bundle(words, names, fitted.solved, fitted.factor, len(pile), decision)
    write_json(output / PHOTOS, {pile.contents[i]: labels.get(pile.paths[i], "") for i in rows})
    seen = [names[i] for i in fitted.teacher.argmax(1).tolist()]
    write_json(output / TEACHER, dict(zip(pile.contents, seen, strict=True)))
    write_names(output, names)
    write_bundle(output, replace(bundle, comparison=fitted.comparison()))


def different(whole: Pile, labels: Mapping[str, str]) -> Pile:
    """Return the different photos of a pile: what is held out must not be a copy of what is learned from."""
    pile = whole.distinct(labels)
    check_count(pile.paths, labels, whole.facts["folder"])
    if len(pile) < len(whole):
        print(f"{len(whole) - len(pile):,} photos are copies of others: each counts once", flush=True)
    return pile


def check_count(paths: Collection[str], labels: Mapping[str, str], folder: str | Path) -> None:
    """Refuse too few photos to learn from some and to compare on others."""
    free = sum(path not in labels for path in paths)
    if len(paths) < LEAST or free < LEAST - 1:
        raise ConfigError(
            f"PHOTOS '{folder}' has {len(paths)} different photos that can be read, {free} without a label: expected at least "
            f"{LEAST}, {LEAST - 1} of them without, and better some hundred."
        )


def labels_of(file: str | None, names: list[str], photos: Path, there: set[str]) -> dict[str, str]:
    """Return the classes of labelled photos by path below the folder, of those that are there.

    Raises:
        ValueError, OSError: the table cannot be used, or has no label of a photo there.
    """
    rows = [row for row in read_labels(file, names) if row.label not in ("", REJECTED)] if file else []
    below = {Path(os.path.relpath(os.path.abspath(row.path), photos)).as_posix(): row.label for row in rows}
    labels = {path: label for path, label in below.items() if path in there}
    if file and not labels:
        raise ConfigError(
            f"--labels '{file}' has no label of a photo in '{photos}' ({len(rows):,} are of other files): expected a table "
            "with the columns path and label, as the gallery of these photos saves it."
        )
    if others := len(rows) - len(labels):
        print(f"--labels '{file}': {others:,} labels of files that are not in '{photos}' are left out", file=sys.stderr)
    return labels


def refuse_same(words: Words, names: list[str]) -> None:
    """Refuse names that are the same to the teacher; say which are to the student, whose head can still part them.

    The names are encoded here, alone, in a fit as in a refit: the last bits depend on what is encoded together.
    """
    if line := same_names(names, words.of_teacher(names), words.teacher_name):
        raise ValueError(line)
    if line := same_names(names, words.of_student(names, words.template), words.student_name):
        print(f"Warning: {line}", file=sys.stderr)


def write_names(folder: Path, names: Sequence[str]) -> None:
    with atomic_write(folder / "names.txt", "w") as file:
        file.write("\n".join([*names, ""]))


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)


# --------------------------------------------------------- learners that are trained: the existing trainers, on known features


def train(
    key: str,
    folder: Path,
    pile: Pile,
    rows: Sequence[int],
    names: list[str],
    labels: Mapping[str, str],
    words: Words,
) -> tuple[Bundle, Logits]:
    """Train a learner as `train.py` does, in its own folder; return its bundle, and its logits on the student's CLIP.

    A training that was stopped resumes; one for other photos, names or labels in the same folder is refused.

    Args:
        rows: of the photos that are learned from.

    Raises:
        ValueError, OSError, FloatingPointError, OccupiedError: as `train.py` reports them.
        Interrupted: by a signal, after the state is saved.
    """
    import kdpl.datasets
    import kdpl.trainers  # noqa: F401

    from dassl.engine import build_trainer  # isort: skip
    from dassl.utils import set_random_seed, setup_logger

    write_names(folder, names)
    cfg, photos = settings(key, folder, [pile.paths[i] for i in rows], pile.facts["folder"], names, words)
    write_json(folder / "images.json", photos)
    known = [i for i, path in enumerate(pile.paths) if path in labels]
    classes = torch.tensor([names.index(labels[pile.paths[i]]) for i in known])
    print(f"Learning {LEARNERS[key][0]}: '{folder / 'log.txt'}' has its progress", flush=True)
    with redirect_stdout(io.StringIO()):
        setup_logger(cfg.OUTPUT_DIR)
        with closing(sys.stdout.file):
            print("** Config **", cfg, sep="\n")
            set_random_seed(cfg.SEED)
            trainer = build_trainer(cfg)
            trainer.command = {"config_name": "fit", "model_dir": None}
            trainer.loaded_teachers = [words.teacher]
            trainer.labelled = Labelled(pile.unit()[0][known], classes) if known else None
            trainer.view_features = _known_features(trainer, pile)
            try:
                trainer.train()
            except OtherRunError:
                what = "has what was trained for other photos, names or labels"
                raise ConfigError(f"'{folder}' {what}: choose another folder (-o).") from None
    bundle = replace(read_bundle(folder), classnames=names, decision=Decision(), comparison={})
    classifier = Classifier(bundle, words.student.device)
    return bundle, lambda features: torch.cat([classifier.logits_of(x) for x in features.to(classifier.device).split(64)])


def settings(key: str, folder: Path, photos: list[str], root: str, names: list[str], words: Words) -> tuple[CfgNode, list[str]]:
    """Return the configuration of a training, and its photos: class vectors take all, prompts as many as all epochs see."""
    _, trainer, file = LEARNERS[key]
    flags = {
        "DATASET.NAME": "ImageFolder",
        "DATASET.ROOT": root,
        "DATASET.IMAGE_LIST": str(folder / "images.json"),
        "DATASET.TEMPLATE": words.template if words.template != DEFAULT else "",
        "DATASET.CLASSNAMES": str(folder / "names.txt"),
        "DATASET.NUM_SHOTS": -1,
        "OUTPUT_DIR": str(folder),
        "SEED": 1,
        "TRAINER.NAME": trainer,
        "MODEL.BACKBONE.NAME": words.student_name,
        "TRAINER.KDPL.TEACHER": words.teacher_name,
        "TRAINER.KDPL.VIEWS": 1,
        "TRAIN.PRINT_FREQ": 10,
        "TEST.NO_TEST": True,
        "DATALOADER.NUM_WORKERS": 0,
    }
    cfg = merged_cfg(("", str(CONFIGS / "trainers" / trainer / file)), flags, [])
    batch, epochs = cfg.DATALOADER.TRAIN_X.BATCH_SIZE, cfg.OPTIM.MAX_EPOCH
    steps = min(STEPS[1], max(STEPS[0], epochs * EPOCHS_AT * len(names) // batch))
    if key != "TaskRes":
        photos = photos[: max(batch, steps * batch // LEAST_EPOCHS)]
    cfg.OPTIM.MAX_EPOCH = max(LEAST_EPOCHS, math.ceil(steps / (len(photos) // min(batch, len(photos)))))
    clip = words.student
    if key == "TaskRes":  # class vectors move in units of the text features
        with torch.no_grad(), clip.autocast(frozen=True):
            texts = sentence_features(clip, fill(words.template, names), normalize=False).float()  # (C, d)
        cfg.OPTIM.LR = float(f"{cfg.OPTIM.LR * float(texts.square().mean().sqrt()) / TEXT_SIZE:.2g}")
    cfg.TRAINER[node_of(trainer)].PREC = cfg.TRAINER.KDPL.PREC = words.precision
    check_values(cfg)
    cfg.freeze()
    return cfg, photos


def _known_features(trainer: Any, pile: Pile) -> list[ViewFeatures]:
    """Return the features of a pass as those of a trainer's one fixed view."""
    images, row, found = trainer.training_images, {path: i for i, path in enumerate(pile.paths)}, []
    for values in pile.unit()[::-1][: 1 + trainer.student.reads_frozen_image_features]:
        features = ViewFeatures(images, 1, values.shape[1], torch.float32, device=trainer.device)  # no image is asked about
        zeros = torch.zeros(len(images), dtype=torch.long)
        features.put(torch.arange(len(images)), zeros, values[[row[image.name] for image in images]])
        found.append(features)
    return found
