"""Predictions of many images on their way out: to the terminal, CSV, JSON lines and a gallery."""

import argparse
import csv
import json
import os
import sys
import unicodedata
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from tqdm import tqdm

from kdpl.common.files import atomic_write

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

Sink = Callable[[str, list[str], list[float]], None]  # takes an image's path and its likeliest names with probabilities


def predict(classifier: "Classifier", images: list[str], args: argparse.Namespace) -> int:
    """Predict all images, print and write what is asked for, and return how many could not be read."""
    names, unread = classifier.classnames, 0
    top = min(args.top, len(names))
    with ExitStack() as stack:
        bar = stack.enter_context(tqdm(total=len(images), unit="image", smoothing=0.05, disable=None))
        sinks = [_print_lines]
        sinks += [stack.enter_context(_csv(args.csv, top))] if args.csv else []
        sinks += [stack.enter_context(_json(args.json))] if args.json else []
        gallery = stack.enter_context(_gallery(args, classifier)) if args.html else None

        def on_bad(image: str, error: ValueError) -> None:
            nonlocal unread
            unread += 1
            bar.update()
            tqdm.write(_on_one_line(f"left out: {error}"), file=sys.stderr)

        for paths, probabilities in classifier.stream(images, args.batch_size, args.workers, on_bad):
            values, indices = probabilities.topk(top)  # (B, top)
            likeliest = [[names[i] for i in row] for row in indices.tolist()]
            rows = list(zip(paths, likeliest, values.tolist(), strict=True))
            for sink in sinks:
                for row in rows:
                    sink(*row)
            if gallery:
                gallery(rows)
            bar.update(len(paths))
    return unread


def _print_lines(path: str, names: list[str], probabilities: list[float]) -> None:
    fields = [path, *(f"{name} {p:.4f}" for name, p in zip(names, probabilities, strict=True))]
    line = "\t".join(_on_one_line(field) for field in fields)
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; files are still written to the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _on_one_line(text: str) -> str:
    """Return text with its control characters, of which a terminal would take orders, spelt out."""
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) == "Cc" else c for c in text)


@contextmanager
def _csv(path: str, top: int) -> Iterator[Sink]:
    # A file name that is not UTF-8 is written with backslashes, so that the table is.
    with atomic_write(path, "w", newline="", errors="backslashreplace") as file:
        writer = csv.writer(file)
        later = (column for k in range(2, top + 1) for column in (f"name_{k}", f"probability_{k}"))
        writer.writerow(["path", "name", "probability", *later])
        yield lambda image, names, probabilities: writer.writerow(
            [image, *(field for name, p in zip(names, probabilities, strict=True) for field in (name, f"{p:.6f}"))]
        )


@contextmanager
def _json(path: str) -> Iterator[Sink]:
    with atomic_write(path, "w", errors="backslashreplace") as file:

        def write(image: str, names: list[str], probabilities: list[float]) -> None:
            row = {"path": image, "names": names, "probabilities": [round(p, 6) for p in probabilities]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        yield write


@contextmanager
def _gallery(args: argparse.Namespace, classifier: "Classifier") -> Iterator[Callable[[list[tuple]], None]]:
    from kdpl.classifier.gallery import read_thumbnail, write_gallery

    title = f"{classifier.bundle.trainer}, {classifier.bundle.backbone}"
    with write_gallery(args.html, title) as add, ThreadPoolExecutor(max(1, args.workers)) as pool:

        def add_rows(rows: list[tuple]) -> None:
            for row, picture in zip(rows, pool.map(read_thumbnail, [path for path, *_ in rows]), strict=True):
                add(*row, picture)

        yield add_rows
