"""Photos of one's own: what a classifier of fixed names gains from photos of one source, without labels and with them.

    python benchmarks/emoji/photos.py --publish && python docs/figures/draw.py

Six targets of the embedded benchmark by one artist. Of 128 scenes a class 1, 4, 16 or 64 are drawn to learn from, for each
seed; 16 others test. No data set, search or trial has these scenes, and nothing was chosen by them. Features are computed
once, and every cell is saved as it is done, so that the same command resumes. Compared are class vectors (`KDPL_TaskRes` with
photos.yaml), `KernelHead`, and what `kdpl fit` makes of the same photos: the head, the sentence's scores where held-out
agreement asks for them, and the photos' mirror images. Other piles than as many photos of each class have a table of their
own. The gap is that between the student's sentence and the teacher; intervals are the 95 % bootstrap over seeds and classes.
"""

import argparse
import csv
import json
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import run
import torch
import torch.nn.functional as F
from tabulate import tabulate
from torch import Tensor

from kdpl.clip import load_clip
from kdpl.common.files import atomic_write
from kdpl.datasets.emoji.generator import SCENES
from kdpl.datasets.emoji.plans import STYLES, Scene, _class_rows, draw
from kdpl.experiments.report.cells import Cell, Draws, average, combine, replicates_of
from kdpl.photos.answers import refit
from kdpl.photos.pile import Pile, Words
from kdpl.students.kernel_head import agree, solve

HERE = Path(__file__).resolve().parent
OUTPUT = HERE.parents[1] / "output" / "benchmark" / "own_photos"
MEASURED = HERE / "photos.csv"
TARGETS = ("household", "leisure", "mammals", "meals", "plants", "vehicles")
ARTIST, OTHER_ARTIST = "twemoji", "fluent"
FIRST, POOL, TESTS = 70_000, 128, 16  # numbers of the scenes to learn from; those to test are 500 later
SHOTS, SEEDS = (1, 4, 16, 64), (1, 2, 3, 4, 5)
EACH = "{} of each"
RANDOM, TAIL, TWO, STRANGERS, MISSING, UNSEEN = PILES = (
    "random draw", "long tail, 64 to 2", "two artists, 8 of each", "half are strangers", "half of the names without a photo",
    "tested on an artist without a photo",
)  # fmt: skip
SENTENCE, TEACHER, VECTORS, HEAD, FIT, MEAN = (
    '"a photo of a {}."',
    "teacher",
    "class vectors",
    "kernel head",
    "kdpl fit",
    "mean",
)
NO_LABELS, LABELS = "no labels", "labels"
LEARNED = ((VECTORS, NO_LABELS), (HEAD, NO_LABELS), (FIT, NO_LABELS), (VECTORS, LABELS), (HEAD, LABELS))
KINDS = ((SENTENCE, ""), *LEARNED, (TEACHER, ""))
FIELDS = ("data set", "pile", "learner", "labels", "accuracy", "low", "high", "share", "share low", "share high", "seeds")
CHART = (
    "Accuracy on new photos over the photos of each class, without labels and with them, between the sentence and the teacher"
)
SCALE, RATE, EPOCHS, BATCH = 48.0, 0.54, 12, 32  # of configs/trainers/KDPL_TaskRes/photos.yaml, with 16 and more photos a class


class Photos(NamedTuple):
    """Unit features and classes of photos."""

    student: Tensor  # (N, d)
    teacher: Tensor  # (N, e)
    mirrored: Tensor  # (N, e), the teacher's of photo and mirror image
    label: Tensor  # (N), for tests and for what learns from labels

    def at(self, rows: Tensor) -> "Photos":
        return Photos(*(part[rows] for part in self))


def joined(*parts: Photos) -> Photos:
    return Photos(*(torch.cat(each) for each in zip(*parts, strict=True)))


class Pool(NamedTuple):
    """A target's photos by one artist, and the text features of its names."""

    learn: Photos
    test: Photos
    text: Tensor  # (C, d), as the student has them
    taught: Tensor  # (C, e), the teacher's unit features


@lru_cache(maxsize=3)
@torch.inference_mode()
def pool(target: str, artist: str, count: int = POOL) -> Pool:
    """Return a target's photos, encoded once and cached."""
    path = OUTPUT / f"{target}_{artist}_{FIRST}_{count}.pt"
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        return Pool(Photos(*saved[:4]), Photos(*saved[4:8]), *saved[8:])
    clips, rows = [load_clip("emoji_student"), load_clip("emoji_teacher")], _class_rows(target)

    def seen(clip, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (clip.mean, clip.std))
        return F.normalize(clip.image_features((pixels - mean) / std).float(), dim=-1)

    def encoded(first: int, count: int) -> Photos:
        parts = []
        for label, (name, row) in enumerate(rows.items()):
            scenes = [Scene("x", label, name, STYLES.index(artist), row, k, k, SCENES) for k in range(first, first + count)]
            pixels = torch.from_numpy(draw(scenes)).permute(0, 3, 1, 2).float() / 255
            teacher = seen(clips[1], pixels)
            both = F.normalize(teacher + seen(clips[1], pixels.flip(-1)), dim=-1)
            parts.append(Photos(seen(clips[0], pixels), teacher, both, torch.full((count,), label)))
        return joined(*parts)

    texts = [clip.model.encode_text(clip.tokenizer([f"a photo of a {name}." for name in rows])).float() for clip in clips]
    drawn = Pool(encoded(FIRST, count), encoded(FIRST + 500, TESTS), texts[0], F.normalize(texts[1], dim=-1))
    with atomic_write(path) as file:
        torch.save([*drawn.learn, *drawn.test, *drawn[2:]], file)
    return drawn


# ------------------------------------------------------------------------------------------------------ what is learned


def vectors(photos: Photos, log_p: Tensor, base: Tensor, labels: bool, epochs: int, seed: int) -> Callable[[Tensor], Tensor]:
    """Return the scores of TaskRes, learned by KDPL's symmetric divergence or by cross-entropy."""
    torch.manual_seed(seed)
    r = torch.zeros_like(base, requires_grad=True)
    optimizer = torch.optim.Adam([r], RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    for _ in range(epochs):
        for i in torch.randperm(len(log_p)).split(BATCH):
            z = SCALE * photos.student[i] @ F.normalize(base + 0.5 * r, dim=-1).T
            s, t = z.log_softmax(-1), log_p[i]
            loss = F.cross_entropy(z, photos.label[i]) if labels else 0.5 * ((t.exp() - s.exp()) * (t - s)).sum(-1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        schedule.step()
    learned = F.normalize(base + 0.5 * r.detach(), dim=-1)
    return lambda x: x @ learned.T


@lru_cache(maxsize=1)
def words(target: str) -> tuple[Words, list[str]]:
    return Words("emoji_student", "emoji_teacher", "a photo of a {}."), list(_class_rows(target))


def fitted(pile: Photos, target: str, seed: int) -> Callable[[Tensor], Tensor]:
    """Return the scores of `kdpl fit`."""
    towers, names = words(target)
    paths = [f"{i}.png" for i in range(len(pile.label))]
    scales = {f"{which}_scale": float(getattr(towers, which).logit_scale) for which in ("student", "teacher")}
    background = [part[:0].half() for part in (pile.student, pile.mirrored)]
    features = [part.half() for part in (pile.student, pile.mirrored)]
    return refit(Pile(scales, paths, paths, [], [], *features, *background), towers, names, seed=seed).scores


def right(pile: Photos, target: str, asked: Pool, test: Photos, photos: int, seed: int) -> dict[str, list[int]]:
    """Return for each learner how many test photos of each class it names right; labels past the names are of strangers."""
    names = len(asked.text)
    log_p = (SCALE * pile.teacher @ asked.taught.T).log_softmax(-1)
    ours = pile.label < names
    known, epochs = pile.at(ours), max(EPOCHS, EPOCHS * 16 // photos)
    learned = {
        (SENTENCE, ""): lambda x: x @ F.normalize(asked.text, dim=-1).T,
        (VECTORS, NO_LABELS): vectors(pile, log_p, asked.text, False, epochs, seed),
        (HEAD, NO_LABELS): solve(pile.student, agree(pile.teacher, log_p)).scores,
        (FIT, NO_LABELS): fitted(pile, target, seed),
        (VECTORS, LABELS): vectors(known, log_p[ours], asked.text, True, epochs, seed),
        (HEAD, LABELS): solve(known.student, F.one_hot(known.label, names).float()).scores,
    }
    guesses = {kind: scores(test.student).argmax(-1) for kind, scores in learned.items()}
    guesses[TEACHER, ""] = (test.teacher @ asked.taught.T).argmax(-1)
    return {
        "|".join(kind): torch.bincount(test.label[guess == test.label], minlength=names).tolist()
        for kind, guess in guesses.items()
    }


def drawn(counts: Sequence[int], per_class: int, g: torch.Generator) -> Tensor:
    """Return rows of a pool with `per_class` photos of each class, so many of each at random."""
    return torch.cat([torch.randperm(per_class, generator=g)[:n] + c * per_class for c, n in enumerate(counts)])


def cell(target: str, pile: str, seed: int) -> dict:
    """Return what is right by learner, and the test photos of each class; computed once and saved."""
    path = OUTPUT / "cells" / f"{target}, {pile}, {seed}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    asked = pool(target, ARTIST)
    names, test, g = len(asked.text), asked.test, torch.Generator().manual_seed(seed)
    photos = int(pile.split(maxsplit=1)[0]) if pile.endswith("of each") and pile != TWO else 16
    some = asked.learn.at(drawn([photos] * names, POOL, g))
    if pile == RANDOM:
        some = asked.learn.at(torch.randperm(names * POOL, generator=g)[: len(some.label)])
    elif pile == TAIL:
        counts = [round(64 * (2 / 64) ** (c / (names - 1))) for c in torch.randperm(names, generator=g).tolist()]
        some = asked.learn.at(drawn(counts, POOL, g))
    elif pile == TWO:
        second = pool(target, OTHER_ARTIST, 16)
        some = joined(asked.learn.at(drawn([8] * names, POOL, g)), second.learn.at(drawn([8] * names, 16, g)))
        test = joined(test, second.test)
    elif pile == STRANGERS:
        others = pool(TARGETS[(TARGETS.index(target) + 1) % len(TARGETS)], ARTIST).learn
        others = others.at(torch.randperm(len(others.label), generator=g)[: len(some.label)])
        some = joined(some, others._replace(label=torch.full_like(others.label, names)))
    elif pile == MISSING:  # every other name, which is tested alone
        some, test = some.at(some.label % 2 == 0), test.at(test.label % 2 == 0)
    elif pile == UNSEEN:
        test = pool(target, OTHER_ARTIST, 16).test
    counts = {"images": torch.bincount(test.label, minlength=names).tolist()}
    counts["right"] = right(some, target, asked, test, photos, seed)
    with atomic_write(path, "w") as file:
        json.dump(counts, file)
    return counts


# ----------------------------------------------------------------------------------------------------------- the table


def cells_of(target: str, pile: str) -> dict[tuple[str, str], Cell]:
    """Return the accuracies of all learners, over all seeds."""
    by_seed, cells = {seed: cell(target, pile, seed) for seed in SEEDS}, {}
    images = by_seed[SEEDS[0]]["images"]
    for kind in KINDS:
        counts = {seed: each["right"]["|".join(kind)] for seed, each in by_seed.items()}
        values = {seed: 100 * sum(r) / sum(images) for seed, r in counts.items()}
        cells[kind] = Cell(values, replicates=replicates_of(counts, images, target, target))
    return cells


def rows_of(name: str, pile: str, cells: Mapping[tuple[str, str], Cell], draws: Draws) -> list[dict[str, object]]:
    """Return the rows of a data set and a pile: accuracies and shares of the gap, with their intervals."""
    rows, ends = [], (cells[SENTENCE, ""], cells[TEACHER, ""])
    for (learner, labels), each in cells.items():
        gap = combine([each, *ends], lambda v: 100 * (v[0] - v[1]) / (v[2] - v[1]))
        numbers = [f"{value:.2f}" for part in (each, gap) for value in (part.mean, *part.interval(draws))]
        rows.append(dict(zip(FIELDS, (name, pile, learner, labels, *numbers, len(each.values)), strict=True)))
    return rows


def measure() -> list[dict[str, object]]:
    """Return the rows of all piles, measured where they are not yet."""
    draws, rows, start = Draws(), [], time.perf_counter()
    for pile in (*(EACH.format(n) for n in SHOTS), *PILES):
        of = {target: cells_of(target, pile) for target in TARGETS}
        mean = {kind: average([cells[kind] for cells in of.values()]) for kind in KINDS}
        for name, cells in (*of.items(), (MEAN, mean)):
            rows += rows_of(name, pile, cells, draws)
        print(
            f"{time.perf_counter() - start:.0f} s, {pile}:",
            *(f"{' '.join(k)} {c.mean:.1f}" for k, c in mean.items()),
            flush=True,
        )
    return rows


# ------------------------------------------------------------------------------------------------- what the pages show


class Measured:
    """The rows of photos.csv by what they are of."""

    def __init__(self, rows: Sequence[Mapping[str, str]]):
        self.rows = {(row["data set"], row["pile"], row["learner"], row["labels"]): row for row in rows}

    def number(self, name: str, pile: str, kind: tuple[str, str], field: str = "accuracy") -> float:
        return float(self.rows[(name, pile, *kind)][field])

    def table(self, first: str, body: Mapping[str, tuple[str, str]]) -> str:
        """Return accuracies of all learners: a row for each of `body`, with the data set and pile that it shows."""
        head = [first, *(", ".join(filter(None, kind)) for kind in KINDS)]
        rows = [[words, *(f"{self.number(*of, kind):.1f}" for kind in KINDS)] for words, of in body.items()]
        return tabulate(rows, head, "github", disable_numparse=True)

    def shares(self) -> str:
        """Return the shares of the gap on the mean, with intervals."""
        fields = ("share", "share low", "share high")
        piles = [EACH.format(n) for n in SHOTS]
        rows = [
            [
                ", ".join(kind),
                *("{:.0f} ({:.0f} to {:.0f})".format(*(self.number(MEAN, p, kind, f) for f in fields)) for p in piles),
            ]
            for kind in LEARNED
        ]
        return tabulate(rows, ["of the gap", *piles], "github", disable_numparse=True)

    def words(self) -> str:
        """Return the result in a few sentences."""
        at = {(kind, n): self.number(MEAN, EACH.format(n), kind) for kind in KINDS for n in SHOTS}
        head, vectors, labelled = (HEAD, NO_LABELS), (VECTORS, NO_LABELS), (HEAD, LABELS)
        gap = {n: self.number(MEAN, EACH.format(n), head, "share") for n in SHOTS}
        text = (
            f"From 16 photos a class without a label the head goes from the sentence's {at[(SENTENCE, ''), 16]:.1f} to "
            f"{at[head, 16]:.1f} % on new photos of the same source, and from 64 to {at[head, 64]:.1f} %; class vectors reach "
            f"{at[vectors, 16]:.1f} and {at[vectors, 64]:.1f} %, the teacher {at[(TEACHER, ''), 16]:.1f} % (mean over "
            f"{len(TARGETS)} data sets, scenes by which nothing was chosen). That closes {gap[16]:.0f} and {gap[64]:.0f} % of "
            f"the gap. With a label for each of the 16 photos the head gets {at[labelled, 16]:.1f} %. With one photo a class "
            f"it has {at[head, 1]:.1f} %, and `kdpl fit`, which lets the sentence help, {at[(FIT, NO_LABELS), 1]:.1f} %. On an "
            f"artist of whom it saw no photo it has {self.number(MEAN, UNSEEN, head):.1f} % where the sentence has "
            f"{self.number(MEAN, UNSEEN, (SENTENCE, '')):.1f} %."
        )
        return textwrap.fill(text, 128, break_long_words=False) + "\n"


def blocks_of(rows: Sequence[Mapping[str, str]]) -> dict[tuple[Path, str], str]:
    """Return what the pages show, by page and name of the block."""
    docs, m = HERE.parents[1] / "docs", Measured(rows)
    chart = (
        '<picture>\n  <source media="(prefers-color-scheme: dark)" srcset="figures/photos-dark.svg">\n'
        f'  <img alt="{CHART}" src="figures/photos-light.svg">\n</picture>\n'
    )
    shots = {f"{n} a class": (MEAN, EACH.format(n)) for n in SHOTS}
    piles = {pile: (MEAN, pile) for pile in (EACH.format(16), *PILES)}
    shown = (
        f"{chart}\n{m.words()}\n"
        f"Accuracy in percent, mean of the six:\n\n{m.table('photos', shots)}\n\n"
        f"Share of the gap between sentence and teacher that is closed, in percent, with 95 % intervals:\n\n{m.shares()}\n\n"
        f"Other piles, of about 16 photos a class, mean of the six:\n\n{m.table('pile', piles)}\n"
    )
    readme = f"{chart.replace('figures/', 'docs/figures/')}\n{m.words()}"
    return {(docs / "benchmark.md", "photos"): shown, (docs.parent / "README.md", "photos"): readme}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--publish", action="store_true", help="write photos.csv and the pages")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure()
    if args.publish:
        with open(MEASURED, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        run.write_blocks(blocks_of(run.committed(MEASURED)))


if __name__ == "__main__":
    main()
