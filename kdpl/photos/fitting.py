"""A fit, from its arguments to what is in OUT: list photos, look at them, learn, compare, write. A refit is its second half."""

import argparse
import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdpl.bundle import write_bundle
from kdpl.bundle.learned import refuse_doubles
from kdpl.common import sources
from kdpl.common.files import atomic_write, name_below, remove_parts
from kdpl.common.images import BadImageError, list_images, others_line
from kdpl.common.outputs import FIT, check_folder, occupy, take_folder
from kdpl.common.safe_text import REJECTED
from kdpl.config.keys import ConfigError
from kdpl.photos.answers import LEAST_DIFFERENT, Fitted, Row, decide, head_bundle, measured, paragraph, refit, split
from kdpl.photos.commands import doing, teacher_name, with_size
from kdpl.photos.evaluate import CHOSEN_BY, LABELLED, PHOTOS, REPORTED, TEACHER, TRAIN, read_labels
from kdpl.photos.learn import LEARNERS, Learned, Task, train
from kdpl.photos.pile import FILE, Pile, Towers, Words, begin_pile, complete, read_pile
from kdpl.students.kernel_head import fit_factor
from kdpl.text.prompts import same_names

QUICK_PHOTOS = (200, 12)  # with --quick: at most so many, or so many for each name
LEAST_FREE = 64  # photos without a label that are looked at, with --quick
SHOWN = 10  # unreadable photos that are listed


def fit(args: argparse.Namespace, names: list[str]) -> bool:
    """Fit as the command line asks; return whether all photos could be read.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    photos, output, teacher = sources.absolute(args.photos), Path(args.output), teacher_name(args.teacher)
    refuse_doubles(names, f"'{args.names}'")
    before = read_pile(output)
    for flag, key, now in (
        ("--student", "student", args.student), ("--teacher", "teacher", teacher), ("PHOTOS", "folder", str(photos)),
    ):  # fmt: skip
        if before is not None and (was := before.facts.get(key)) != now:
            raise ConfigError(f"'{output}' has features for {flag} '{was}', not '{now}': choose another folder (-o).")
    order, labels, unread = listed(args, names, photos)
    print(f"student {with_size(args.student)}, teacher {with_size(teacher)}", flush=True)
    if args.student == teacher:
        print("Student and teacher are the same CLIP: there is nothing to learn from it that the student does not know.")

    take_folder(output, FIT)
    occupy(output)
    remove_parts(output)
    words = Words(args.student, teacher, args.template)
    with doing(f"Loading {args.student} and {teacher}", quiet=args.quiet):
        _ = words.student, words.teacher
    refuse_same(words, names)
    pile = look(photos, order, words, args.seed, output, before, unread, args.quiet)
    pile = different(pile, labels)
    parts = split(pile.paths, labels, args.seed)
    train_count, chosen, reported = (f"{len(parts[part]):,}" for part in (TRAIN, CHOSEN_BY, REPORTED))
    known = f", {len(labels):,} of them with labels" if labels else ""
    held = f"{chosen} to choose by, {reported} to report on"
    print(f"Photos: {train_count} to learn from{known}, held out: {held}; {len(unread):,} could not be read", flush=True)

    task = Task(pile, parts[TRAIN], names, labels, words, args.seed, output / "learned")
    learners = [learner for learner in LEARNERS if args.best or learner.key == args.learn]
    if learners:
        task.begin()
    for learner in learners:
        train(task, learner, args.quiet)
    trained = [Learned(task, learner) for learner in learners]
    with doing("Solving the head, and comparing", quiet=args.quiet):
        others = [row_of(learned, pile, parts, words.of_teacher(names)) for learned in trained]
        fitted = refit(pile, words, names, labels, args.sentence, args.seed, others)
    finish(output, pile, words, fitted, labels, trained)
    return not unread


def listed(args: argparse.Namespace, names: list[str], photos: Path) -> tuple[list[str], dict[str, str], list[str]]:
    """Return the photos, below their folder, as they are looked at, their labels, and why some cannot be read.

    Raises:
        ValueError, OSError: there are too few, or the labels cannot be used.
    """
    with doing(f"Looking through '{photos}'", quiet=args.quiet):
        listing = list_images(photos)
    order = [path.relative_to(photos).as_posix() for path in listing.images]
    if len(order) < LEAST_DIFFERENT:
        raise ConfigError(
            f"PHOTOS '{photos}' has {len(order)} photos that can be read, expected at least {LEAST_DIFFERENT}, and better some "
            "hundred: of few, half are held out."
        )
    random.Random(args.seed).shuffle(order)
    labels = labels_of(args.labels, names, photos, set(order)) if args.labels else {}
    others = others_line(listing.others)
    print(f"{len(order):,} photos{others and f' ({others} not read)'}, {len(names):,} class names")
    if args.quick:
        order.sort(key=lambda path: path not in labels)  # which keeps the random order otherwise
        order = order[: max(QUICK_PHOTOS[0], QUICK_PHOTOS[1] * len(names), len(labels) + LEAST_FREE)]
        print(f"{len(order):,} of them are looked at")
    unread = list(listing.unreadable.values())
    for reason in unread[:SHOWN]:
        print(f"left out: {reason}", file=sys.stderr)
    return order, labels, unread


def refit_in(source: Path, output: Path, args: argparse.Namespace, names: list[str]) -> int:
    """Fit names and labels to the photos of a fit, from their features; return how many photos there are.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    pile = read_pile(source)
    refuse_doubles(names, f"'{args.names}'")
    facts = pile.facts
    check_folder(output, FIT, facts["folder"])
    labels = labels_of(args.labels, names, Path(facts["folder"]), set(pile.paths)) if args.labels else {}
    words = Words(facts["student"], facts["teacher"], facts["template"])
    refuse_same(words, names)
    some = different(pile, labels)
    fitted = refit(some, words, names, labels, args.sentence, facts["seed"])
    take_folder(output, FIT)
    occupy(output)
    if output.resolve() != source.resolve():
        pile.write(output)
    finish(output, some, words, fitted, labels)
    return len(some)


def labels_of(file: str, names: list[str], photos: Path, there: set[str]) -> dict[str, str]:
    """Return the classes of labelled photos by path below the folder, of those that are there.

    Raises:
        ValueError, OSError: the table cannot be used, or has no label of a photo there.
    """
    labels, others = {}, 0
    for path, label, _ in read_labels(file, names):
        name = Path(os.path.relpath(os.path.abspath(path), photos)).as_posix()
        if label not in ("", REJECTED) and name in there:
            labels[name] = label
        else:
            others += label not in ("", REJECTED)
    if not labels:
        raise ConfigError(
            f"--labels '{file}' has no label of a photo in '{photos}' ({others:,} are of other files): expected a table with "
            "the columns path and label, as the gallery of these photos saves it."
        )
    if others:
        print(f"--labels '{file}': {others:,} labels of files that are not in '{photos}' are left out", file=sys.stderr)
    return labels


def refuse_same(words: Words, names: list[str]) -> None:
    """Refuse names that are the same to the teacher; say which are to the student, whose head can still part them."""
    if line := same_names(names, words.of_teacher(names), words.teacher_name):
        raise ValueError(line)
    if line := same_names(names, words.of_student(names, words.template), words.student_name):
        print(f"Warning: {line}", file=sys.stderr)


def look(
    photos: Path,
    order: Sequence[str],
    words: Words,
    seed: int,
    output: Path,
    before: Pile | None,
    unread: list[str],
    quiet: bool,
) -> Pile:
    """Return the features of the photos: those that are known, and the others computed now."""
    towers = Towers(words)
    with doing("Encoding names", quiet=quiet):
        pile = begin_pile(before, words, photos, seed)
    known = len(pile.of(order))
    if known:
        print(f"{known:,} of {len(order):,} photos are known: their features are in '{output / FILE}'", flush=True)

    def leave_out(path: str, error: BadImageError) -> None:
        unread.append(str(error))
        if len(unread) <= SHOWN:
            print(f"left out: {error}", file=sys.stderr)

    with doing("Looking at photos", len(order) - known, "photo", quiet) as bar:
        pile = complete(pile, photos, order, towers, output, leave_out, bar.update)
    if not len(pile):
        raise ValueError(f"PHOTOS '{photos}' has no photo that can be read.")
    if before is None or (pile.facts, pile.paths) != (before.facts, before.paths):
        pile.write(output)  # what this fit was of, which a refit reads
    return pile


def different(pile: Pile, labels: Mapping[str, str]) -> Pile:
    """Return the different photos of a pile: what is held out must not be a copy of what is learned from.

    Raises:
        ValueError: copies have different labels, or there are fewer than `LEAST_DIFFERENT` different photos.
    """
    some = pile.distinct(labels)
    if len(some) < LEAST_DIFFERENT:
        raise ValueError(
            f"PHOTOS '{pile.facts['folder']}' has {len(some)} different photos that can be read, expected at least "
            f"{LEAST_DIFFERENT}: the others are copies of these."
        )
    if len(some) < len(pile):
        print(f"{len(pile) - len(some):,} photos are copies of others: each counts once")
    return some


def row_of(learned: Learned, pile: Pile, parts: Mapping[str, list[int]], teacher_texts: Tensor) -> Row:
    """Return what was trained as a row of the comparison."""
    teacher, on = pile.unit()[1], {}
    for part in (CHOSEN_BY, REPORTED):
        p = (pile.facts["teacher_scale"] * teacher[parts[part]] @ teacher_texts.T).softmax(1)
        on[part] = measured(learned.logits(parts[part]), p)
    return Row(learned.learner.title, [], learned.learner.key, on)


def finish(
    output: Path, pile: Pile, words: Words, fitted: Fitted, labels: Mapping[str, str], trained: Sequence[Learned] = ()
) -> None:
    """Print the comparison, and write what is used, the card, and the records of the photos.

    Raises:
        ValueError: there is a single name, and nothing separates the photos.
    """
    used, names, parts = fitted.used, fitted.names, fitted.parts
    learned = next((each for each in trained if each.learner.key == used.learned), None)
    if learned is None:  # of a head the sentence says whether a photo is any of the names
        texts = [words.of_student(names, sentence) for sentence in used.sentences or [words.template]]
        text = F.normalize(torch.stack(texts).mean(0), dim=-1)

    def own(rows: list[int]) -> Tensor:
        return learned.logits(rows) if learned else pile.facts["student_scale"] * pile.unit()[0][rows] @ text.T

    decision, line = decide(pile, words.of_teacher(names), parts, own)
    if len(names) == 1 and decision.threshold is None:
        raise ValueError(f"{line} With a single class name nothing else can be predicted: give more names, or other photos.")
    if len(names) > 1:
        print(fitted.words())
        print("", "Photos to look at, of whose names it is least sure:", "", sep="\n")
        for path, first, second in fitted.doubtful:
            print(f"  {name_below(Path(pile.facts['folder'], path), Path.cwd())}: {first}, or {second}?")
    print("", paragraph(line), sep="\n")
    logits = torch.cat([used.on[part].logits for part in (CHOSEN_BY, REPORTED)])
    temperature = 1 / fit_factor(logits, fitted.teacher[parts[CHOSEN_BY] + parts[REPORTED]])
    decision = replace(decision, sentences=used.sentences, temperature=temperature, classnames=names)
    if learned is None:
        bundle = head_bundle(words, names, fitted.solved, fitted.factor, len(pile), decision)
        parts = {**parts, TRAIN: list(range(len(pile)))}
    else:
        bundle = replace(learned.bundle, decision=decision)
    comparison = {"photos": len(parts[REPORTED]), "rows": fitted.table(), "verdict": fitted.verdict}
    comparison["without photo"] = fitted.without_photo
    write_records(output, pile, parts, labels)
    seen = [names[i] for i in fitted.teacher.argmax(1).tolist()]
    write_json(output / TEACHER, dict(zip(pile.contents, seen, strict=True)))
    write_names(output, names)
    write_bundle(output, replace(bundle, comparison=comparison if len(names) > 1 else {}))


def write_records(output: Path, pile: Pile, parts: Mapping[str, Sequence[int]], labels: Mapping[str, str]) -> None:
    """Record which photos were for what, with the digests of their contents."""
    rows = {**parts, LABELLED: [i for i, path in enumerate(pile.paths) if path in labels]}
    write_json(output / PHOTOS, {part: {pile.paths[i]: pile.contents[i] for i in some} for part, some in rows.items()})


def write_names(output: Path, names: Sequence[str]) -> None:
    with atomic_write(output / "names.txt", "w") as file:
        file.write("\n".join([*names, ""]))


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)
