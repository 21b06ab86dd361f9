"""A fit, from its request to what is in OUT: look at the photos, learn, compare, write. Each step gives the next its values."""

import argparse
import dataclasses
import json
import os
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tabulate import tabulate

from kdpl.bundle import write_bundle
from kdpl.bundle.learned import refuse_doubles
from kdpl.clip.loading import outline_clip
from kdpl.common.class_names import REJECTED
from kdpl.common.files import atomic_write, key_of, name_below
from kdpl.common.images import BadImageError, list_images, media_line, unreadable
from kdpl.common.safe_text import read_json
from kdpl.config.keys import ConfigError
from kdpl.distill.teacher import Teacher
from kdpl.photos import reject
from kdpl.photos.answers import LEAST_DIFFERENT, Fitted, Words, refit, split
from kdpl.photos.bundles import head_bundle
from kdpl.photos.labels import CHOSEN_BY, LABELLED, PHOTOS, REPORTED, TEACHER, TRAIN, read_labels
from kdpl.photos.learn import Known, Learned, Learner, Task, learners_for, train, vocabulary_for
from kdpl.photos.models import downloads, size_of
from kdpl.photos.pile import FILE, Pile, Towers, complete, read_pile
from kdpl.photos.verdict import Row, measured, paragraph
from kdpl.photos.waiting import doing
from kdpl.students.kernel_head import fit_factor
from kdpl.text.prompts import same_names
from kdpl.text.templates import DEFAULT
from kdpl.text.vocabulary import load_vocabulary

LEAST_PHOTOS = 64  # that are looked at, however little time there is
QUICK_PHOTOS = (200, 12)  # with --quick: at most so many, or so many for each name
CHECKED = 200  # photos whose headers are read before anything is loaded
BACKGROUND = 500  # names of the vocabulary with which the class names are compared
SHOWN = 10  # unreadable photos that are listed


@dataclass(frozen=True)
class Request:
    """What is to be done, checked as far as it can be without the models."""

    task: Task
    learners: list[Learner]
    order: list[str]  # the photos, below the folder, as they are looked at
    most: int  # of them are looked at
    minutes: float | None
    labels: dict[str, str]  # the classes that are known, by path
    sentences: list[str]
    skipped: dict[str, str]  # what cannot be read, with the reasons
    media: str  # pictures and films that are not read
    pile: Pile | None  # of an earlier start in the same folder
    quiet: bool


def prepare(args: argparse.Namespace, names: list[str]) -> Request:
    """Return what a fit will do; nothing is written.

    Raises:
        ValueError, OSError: the message names what cannot be used.
    """
    photos = Path(args.photos).absolute()
    refuse_doubles(names, f"'{args.names}'")
    learners = learners_for(args.learn, args.best, len(names) == 1, args.student, bool(args.labels))
    task = Task(photos, names, args.output, args.student, args.teacher, args.template, args.seed)
    pile = read_pile(args.output)
    if pile is not None:
        for flag, was, now in (
            ("--student", pile.facts["student"], args.student),
            ("--teacher", pile.facts["teacher"], args.teacher),
            ("PHOTOS", pile.facts["folder"], str(photos)),
        ):
            if was != now:
                raise ConfigError(f"'{args.output}' has features for {flag} '{was}', not '{now}': choose another folder (-o).")
    with doing(f"Looking through '{photos}'", quiet=args.quiet):
        listing = list_images(photos)
        order = [path.relative_to(photos).as_posix() for path in listing.images]
        random.Random(args.seed).shuffle(order)
        headers = unreadable([photos / path for path in order[:CHECKED]], decode=False)
        bad = {path.relative_to(photos).as_posix(): why for path, why in headers.items()}
        order = [path for path in order if path not in bad]
    if len(order) < LEAST_DIFFERENT:
        raise ConfigError(
            f"PHOTOS '{photos}' has {len(order)} photos that can be read, expected at least {LEAST_DIFFERENT}, and better some "
            "hundred: of few, half are held out."
        )
    labels = labels_of(args.labels, names, photos, set(order)) if args.labels else {}
    most = max(QUICK_PHOTOS[0], QUICK_PHOTOS[1] * len(names)) if args.quick else len(order)
    if most < len(order) or args.minutes:
        order.sort(key=lambda path: path not in labels)  # which keeps the random order otherwise
    skipped = {**{str(path): why for path, why in listing.unreadable.items()}, **bad}
    return Request(
        task, learners, order, min(max(most, len(labels) + LEAST_PHOTOS), len(order)), args.minutes, labels, args.sentence,
        skipped, media_line(listing.media), pile, args.quiet,
    )  # fmt: skip


def labels_of(file: str, names: list[str], photos: Path, there: set[str]) -> dict[str, str]:
    """Return the classes of labelled photos by path below the folder, of those that are there.

    Raises:
        ValueError, OSError: the table cannot be used, or has no label of a photo there.
    """
    labels, others = {}, 0
    for path, label, _ in read_labels(file, names):
        if label in ("", REJECTED):
            continue
        name = Path(os.path.relpath(os.path.abspath(path), photos)).as_posix()
        if name in there:
            labels[name] = label
        else:
            others += 1
    if not labels:
        raise ConfigError(
            f"--labels '{file}' has no label of a photo in '{photos}' ({others:,} are of other files): expected a table with "
            "the columns path and label, as the gallery of these photos saves it."
        )
    if others:
        print(f"--labels '{file}': {others:,} labels of files that are not in '{photos}' are left out", file=sys.stderr)
    return labels


def say(request: Request) -> None:
    """Print what will be done, and what will be downloaded, before it is."""
    task = request.task
    sizes = [size_of(name) for name in dict.fromkeys((task.student, task.teacher))]
    widths = [outline_clip(name).embed_dim for name in (task.student, task.teacher)]
    size = (request.most + BACKGROUND) * (2 * sum(widths) + 140)  # 140 bytes: the path, the digest, size and time of a file
    fewer = f", of which {request.most:,} are looked at" if request.most < len(request.order) else ""
    what = [learner.title for learner in request.learners]
    rows = [
        ["photos", f"{len(request.order):,}{fewer}"],
        ["not read", request.media],
        ["class names", f"{len(task.names):,}: {', '.join(task.names[:4])}{', ...' if len(task.names) > 4 else ''}"],
        ["student", f"{sizes[0]}"],
        ["teacher", f"{sizes[-1]}"],
        ["download", downloads(sizes)],
        ["learns", ", ".join([*([] if task.agnostic else ["a head on the photos' features"]), *what])],
        ["output", f"{task.output}; {FILE} in it takes {size / 1e6:.1f} MB"],
    ]
    print(tabulate([row for row in rows if row[1]], tablefmt="plain", disable_numparse=True), flush=True)
    if task.student == task.teacher:
        print("Student and teacher are the same CLIP: there is nothing to learn from it that the student does not know.")
    if request.pile is not None and (names := _names_of(task.output)) not in ([], task.names):
        print(f"'{task.output}' was fitted for {len(names):,} other names: the features of its photos are used again.")


def _names_of(output: Path) -> list[str]:
    path = output / "names.txt"
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def fit(request: Request) -> dict[str, str]:
    """Do what is asked, and write it; return what could not be read, with the reasons."""
    task = request.task
    unread = dict(request.skipped)
    for reason in list(unread.values())[:SHOWN]:
        print(f"left out: {reason}", file=sys.stderr)
    words = Words(task.student, task.teacher, task.template)
    with doing(f"Loading {task.student} and {task.teacher}", quiet=request.quiet):
        _ = words.student, words.teacher
    if not task.agnostic:
        refuse_same(words, task.names)
    pile = different(look(request, words, unread), request.labels, task.photos)
    parts = split(pile.paths, request.labels, task.seed)
    train_count, chosen, reported = (f"{len(parts[part]):,}" for part in (TRAIN, CHOSEN_BY, REPORTED))
    known = f", {len(request.labels):,} of them with labels" if request.labels else ""
    held = f"{chosen} to choose by, {reported} to report on"
    print(f"Photos: {train_count} to learn from{known}, held out: {held}; {len(unread):,} could not be read", flush=True)
    learned = _trained(request, words, pile, parts)
    if task.agnostic:
        finish_one_name(request, words, pile, parts, learned[0])
        return unread
    others = _rows(words, pile, parts, learned)
    with doing("Solving the head, and comparing", quiet=request.quiet):
        fitted = refit(pile, words, task.names, request.labels, request.sentences, task.seed, others)
    finish(task, words, pile, fitted, request.labels, learned)
    return unread


def refuse_same(words: Words, names: list[str]) -> None:
    """Refuse names that are the same to the teacher; say which are to the student, whose head can still part them."""
    if line := same_names(names, words.of_teacher(names), words.teacher_name):
        raise ValueError(line)
    if line := same_names(names, words.of_student(names, words.template), words.student_name):
        print(f"Warning: {line}", file=sys.stderr)


def look(request: Request, words: Words, unread: dict[str, str]) -> Pile:
    """Return the features of the photos: those that are known, and the others computed now."""
    task, student, teacher = request.task, words.student, words.teacher
    towers = Towers(
        student,
        Teacher(teacher, task.names, task.template, student.mean, student.std, text_features=words.of_teacher(task.names)),
    )
    facts = facts_of(words, task.photos, task.seed)
    before = request.pile
    if before is not None and any(before.facts[name] != facts[name] for name in ("student_sha256", "teacher_sha256")):
        raise ConfigError(f"'{task.output}' has features of other weights with the same names: choose another folder (-o).")
    limits = _limits(request, towers, before)
    facts |= limits
    with doing("Encoding names", quiet=request.quiet):
        if before is not None and before.facts["mirror"] == facts["mirror"]:
            pile = dataclasses.replace(before.unchanged(task.photos), facts=facts)
        else:
            pile = empty_pile(facts, words)
    order = request.order[: limits["photos"]]
    known = len(pile.of(order))
    if known:
        print(f"{known:,} of {len(order):,} photos are known: their features are in '{task.output / FILE}'", flush=True)

    def leave_out(path: str, error: BadImageError) -> None:
        unread[path] = str(error)
        if len(unread) <= SHOWN:
            print(f"left out: {error}", file=sys.stderr)

    with doing("Looking at photos", len(order) - known, "photo", request.quiet) as bar:
        pile = complete(pile, task.photos, order, towers, task.output, leave_out, bar.update)
    if not len(pile):
        raise ValueError(f"PHOTOS '{task.photos}' has no photo that can be read.")
    if before is None or (pile.facts, pile.paths) != (before.facts, before.paths):
        pile.write(task.output)  # what this fit was of, which a refit reads
    return pile


def facts_of(words: Words, photos: Path, seed: int) -> dict[str, Any]:
    """Return what the features of a pile depend on, but for which photos are looked at and how."""
    student, teacher = words.student, words.teacher
    return {
        "folder": str(photos), "student": words.student_name, "teacher": words.teacher_name, "template": words.template,
        "student_sha256": student.weights_digest, "teacher_sha256": teacher.weights_digest,
        "student_scale": float(student.logit_scale), "teacher_scale": float(teacher.logit_scale), "seed": seed,
    }  # fmt: skip


def empty_pile(facts: dict[str, Any], words: Words) -> Pile:
    """Return a pile without photos, with names that are spread over the vocabulary of the student."""
    names = load_vocabulary(vocabulary_for(words.student_name))
    step = max(1.0, len(names) / BACKGROUND)
    background = [names[int(i * step)] for i in range(min(BACKGROUND, len(names)))]
    plain = Words(words.student_name, words.teacher_name, DEFAULT)
    plain.student, plain.teacher = words.student, words.teacher
    texts = plain.of_student(background, DEFAULT).half(), plain.of_teacher(background).half()
    return Pile(facts, [], [], [], background, texts[0][:0], texts[1][:0], *texts)


def _limits(request: Request, towers: Towers, before: Pile | None) -> dict[str, Any]:
    """Return how many photos are looked at, and whether their mirror images are: all, unless --minutes says otherwise.

    What the speed has decided once is recorded, and the same whenever the command is started again.
    """
    n, minutes = request.most, request.minutes
    if minutes is None:
        return {"minutes": None, "photos": n, "mirror": True}
    if before is not None and before.facts["minutes"] == minutes:
        return {name: before.facts[name] for name in ("minutes", "photos", "mirror")}
    start = time.perf_counter()
    some = [str(request.task.photos / path) for path in request.order[: towers.chunk]]
    read = next(towers.decoder.batches(some, towers.chunk, on_bad=lambda file, error: None), [])
    decoding = (time.perf_counter() - start) / max(1, len(read))
    once, mirrored = towers.seconds()
    count = min(n, max(LEAST_PHOTOS + len(request.labels), int(60 * minutes / (decoding + once))))
    mirror = count == n and n * (decoding + once + mirrored) <= 60 * minutes
    if count < n:
        print(
            f"{count:,} of {n:,} photos are looked at, drawn at random: a photo takes {decoding + once:.2f} s here, and there "
            f"are {minutes:g} min. All would take --minutes {1.1 * (decoding + once) * n / 60 + 1:.0f}.",
            flush=True,
        )
    elif not mirror:
        print("There is no time for the photos' mirror images, of which the teacher would be asked too.", flush=True)
    return {"minutes": minutes, "photos": count, "mirror": mirror}


def different(pile: Pile, labels: Mapping[str, str], photos: Path) -> Pile:
    """Return the different photos of a pile: what is held out must not be a copy of what is learned from.

    Raises:
        ValueError: copies have different labels, or there are fewer than `LEAST_DIFFERENT` different photos.
    """
    copies = pile.copies()
    for path, original in copies.items():
        if labels.get(path, labels.get(original)) != labels.get(original, labels.get(path)):
            both = f"'{labels.get(original)}' and '{labels[path]}'"
            raise ValueError(f"'{original}' and '{path}' are copies of one photo, with the labels {both}: correct one of them.")
    labelled = {original: path for path, original in copies.items() if path in labels}  # a copy with a label stands for it
    kept = [i for i, p in enumerate(pile.paths) if (p not in copies and p not in labelled) or labelled.get(copies.get(p)) == p]
    if len(kept) < LEAST_DIFFERENT:
        raise ValueError(
            f"PHOTOS '{photos}' has {len(kept)} different photos that can be read, expected at least {LEAST_DIFFERENT}: the "
            "others are copies of these."
        )
    if copies:
        print(f"{len(copies):,} photos are copies of others, such as '{next(iter(copies))}': each counts once")
    return pile.rows(kept)


def _trained(request: Request, words: Words, pile: Pile, parts: Mapping[str, list[int]]) -> list[Learned]:
    """Train what is asked for on the photos to learn from, each in its own folder.

    Raises:
        ConfigError: it was trained for other photos, names or settings.
    """
    task = request.task
    if not request.learners:
        return []
    facts = [task.names, task.template, task.seed, task.student, task.teacher, sorted(request.labels.items())]
    facts.append([pile.contents[i] for i in parts[TRAIN]])
    digest, record = key_of(*facts).hex(), task.output / "learned" / "fit.json"
    if record.is_file() and read_json(record) != digest:
        raise ConfigError(f"'{record.parent}' has what was trained for other photos, names or settings: choose another -o.")
    write_json(record, digest)
    write_names(task)
    features = (F.normalize(f.float(), dim=-1) for f in (pile.student, pile.teacher))
    known = Known(pile.paths, pile.contents, *features, request.labels)
    for learner in request.learners:
        train(task, learner, words.student, words.teacher, known, parts[TRAIN], request.quiet)
    return [Learned(task, learner, words.student) for learner in request.learners]


def _rows(words: Words, pile: Pile, parts: Mapping[str, list[int]], learned: Sequence[Learned]) -> list[Row]:
    """Return what was trained, as it does on the held-out photos."""
    rows = []
    for each in learned:
        on = {}
        for part in (CHOSEN_BY, REPORTED):
            some = pile.rows(parts[part])
            student, teacher = (F.normalize(f.float(), dim=-1) for f in (some.student, some.teacher))
            p = (pile.facts["teacher_scale"] * teacher @ words.of_teacher(each.task.names).T).softmax(1)
            on[part] = measured(each.logits(some.paths, student), p)
        rows.append(Row(each.learner.title, [], each.learner.key, on))
    return rows


def finish(
    task: Task, words: Words, pile: Pile, fitted: Fitted, labels: Mapping[str, str], learned: Sequence[Learned] = ()
) -> None:
    """Print the comparison, and write what is used, the card, and the records of the photos."""
    comparison = fitted.comparison
    used, names = comparison.used, fitted.names
    print(comparison.show())
    if used.learned == "head":
        print("", paragraph(f"The head was fitted once more, to all {len(pile):,} photos."), sep="\n")
    if fitted.without_photo:
        shown = ", ".join(fitted.without_photo[:10]) + (", ..." if len(fitted.without_photo) > 10 else "")
        print(
            paragraph(
                f"No photo seems to show {len(fitted.without_photo)} of the names, for which the sentence speaks: {shown}."
            )
        )
    print("", "Photos to look at, of whose names it is least sure:", "", sep="\n")
    for path, first, second in fitted.doubtful:
        print(f"  {name_below(task.photos / path, Path.cwd())}: {first}, or {second}?")
    trained = next((each for each in learned if each.learner.key == used.learned), None)
    scale, student = pile.facts["student_scale"], F.normalize(pile.student.float(), dim=-1)

    def own(rows: list[int]) -> torch.Tensor:  # of a head the sentence says whether a photo is any of the names
        if trained is not None:
            return trained.logits([pile.paths[i] for i in rows], student[rows])
        texts = [words.of_student(names, sentence) for sentence in used.sentences or [words.template]]
        return scale * student[rows] @ F.normalize(torch.stack(texts).mean(0), dim=-1).T

    decision, line = reject.decide(pile, words.of_teacher(names), fitted.parts, own)
    print("", paragraph(line), sep="\n")
    held = fitted.parts[CHOSEN_BY] + fitted.parts[REPORTED]
    logits = torch.cat([used.on[part].logits for part in (CHOSEN_BY, REPORTED)])
    temperature = 1 / fit_factor(logits, fitted.teacher[held])
    decision = dataclasses.replace(decision, sentences=used.sentences, temperature=temperature, classnames=list(names))
    if trained is None:
        bundle = head_bundle(task, words, names, fitted.solved, fitted.factor, len(pile), decision)
    else:
        bundle = dataclasses.replace(trained.bundle, decision=decision)
    content = {"photos": len(fitted.parts[REPORTED]), "rows": comparison.table(), "verdict": comparison.verdict}
    content["without photo"] = fitted.without_photo
    write_records(task, pile, fitted.parts if trained else {**fitted.parts, TRAIN: list(range(len(pile)))}, labels)
    seen = [names[i] for i in fitted.teacher.argmax(1).tolist()]
    write_json(task.output / TEACHER, dict(zip(pile.contents, seen, strict=True)))
    write_names(task)
    write_bundle(task.output, dataclasses.replace(bundle, comparison=content))


def finish_one_name(request: Request, words: Words, pile: Pile, parts: Mapping[str, list[int]], learned: Learned) -> None:
    """Write what was learned for a single name, by which photos are it or none of these.

    Raises:
        ValueError: nothing separates the photos.
    """
    student = F.normalize(pile.student.float(), dim=-1)
    decision, line = reject.decide(
        pile,
        words.of_teacher(request.task.names),
        parts,
        lambda rows: learned.logits([pile.paths[i] for i in rows], student[rows]),
    )
    decision = dataclasses.replace(decision, classnames=list(request.task.names))
    print("", paragraph(line), sep="\n")
    if decision.threshold is None:
        raise ValueError(f"{line} With a single class name nothing else can be predicted: give more names, or other photos.")
    write_records(request.task, pile, parts, {})
    write_bundle(request.task.output, dataclasses.replace(learned.bundle, decision=decision))


def write_records(task: Task, pile: Pile, parts: Mapping[str, Sequence[int]], labels: Mapping[str, str]) -> None:
    """Record which photos were for what, with the digests of their contents."""
    rows = {**parts, LABELLED: [i for i, path in enumerate(pile.paths) if path in labels]}
    write_json(task.output / PHOTOS, {part: {pile.paths[i]: pile.contents[i] for i in some} for part, some in rows.items()})


def write_names(task: Task) -> None:
    with atomic_write(task.output / "names.txt", "w") as file:
        file.write("\n".join([*task.names, ""]))


def write_json(path: Path, content: Any) -> None:
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=1)
