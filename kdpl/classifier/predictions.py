"""Predictions of many images: which images, and their rows on the way to the terminal, tables, a gallery, folders, keywords."""

import argparse
import csv
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import chain
from typing import IO, TYPE_CHECKING, NamedTuple

from tqdm import tqdm

from kdpl.classifier.folders import Sorter
from kdpl.classifier.keywords import SidecarError, sidecar_of, write_keywords
from kdpl.common import sources
from kdpl.common.files import file_digest
from kdpl.common.images import list_images, others_line
from kdpl.common.outputs import STANDARD_OUTPUT, open_output
from kdpl.common.safe_text import REJECTED, on_one_line, to_cell

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier
    from kdpl.classifier.gallery import GalleryWriter
    from kdpl.common.images import BadImageError

TEXT = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}  # a file name need not be UTF-8


class Found(NamedTuple):
    """The images of a prediction."""

    images: list[str]  # paths, each once
    unreadable: dict[str, str]  # entries in folders that cannot be read, with the reasons
    others: Counter[str]  # files in folders that are not read, by suffix


def find(given: Sequence[str], empty: bool = False) -> Found:
    """Return the images of files, folders and "-", which stands for a list of paths on the standard input.

    The list has a path in each line, or, as `find -print0` writes it, paths that end in a zero byte.

    Args:
        empty: whether a folder may have no image.

    Raises:
        ValueError: a path does not exist, or a folder has no image.
    """
    if missing := [path for path in given if path != "-" and not (os.path.lexists(path) or sources.is_source(path))]:
        shown = ", ".join(f"'{path}'" for path in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise ValueError(f"There is no {shown} in '{os.getcwd()}': expected image files or folders of images.")
    images: dict[str, None] = {}
    unreadable, others = {}, Counter()
    for path in given:
        if path == "-":
            data = sys.stdin.buffer.read()
            lines = [line.rstrip(b"\r") for line in data.split(b"\0" if b"\0" in data else b"\n")]
            images |= dict.fromkeys(os.fsdecode(line) for line in lines if line.strip())
        elif not (os.path.isdir(path) or sources.is_source(path)):
            images[path] = None
        else:
            try:
                listing = list_images(path)
            except OSError as error:
                raise ValueError(f"The folder '{path}' cannot be listed: {error.strerror}.") from None
            if not listing.images and not empty:
                count = listing.others.total() + len(listing.unreadable)
                raise ValueError(
                    f"'{path}' holds no images, at any depth ({count:,} other files). Name files one by one if their suffix "
                    "is unusual."
                )
            images |= dict.fromkeys(map(str, listing.images))
            unreadable |= {str(path): reason for path, reason in listing.unreadable.items()}
            others += listing.others
    if not images and not empty:
        raise ValueError("The list of paths on the standard input (-) is empty: expected a path in each line.")
    return Found(list(images), unreadable, others)


class Row(NamedTuple):
    """An image and what the classifier says about it."""

    path: str
    names: list[str]  # the likeliest, best first
    probabilities: list[float]
    rejected: bool = False  # none of the classes

    def shown(self, top: int) -> list[tuple[str, float | None]]:
        """Return names with probabilities, of a rejected image with `REJECTED` before them, which has no probability."""
        pairs = list(zip(self.names, self.probabilities, strict=True))
        return ([(REJECTED, None), *pairs] if self.rejected else pairs)[:top]

    def line(self, top: int) -> str:
        """Return the row as a line for the terminal, with tabs between path and names."""
        fields = [self.path, *(name if p is None else f"{name} {p:.4f}" for name, p in self.shown(top))]
        return "\t".join(on_one_line(field) for field in fields)


def csv_writer(file: IO[str], top: int) -> Callable[[Sequence[Row]], None]:
    """Return what writes rows as a table: path, name, probability, name_2, ... A name that is not UTF-8 gets backslashes.

    What begins like a formula gets a quote before it, which `kdpl.common.safe_text.from_cell` takes away.
    """
    table = csv.writer(file)
    later = (column for k in range(2, top + 1) for column in (f"name_{k}", f"probability_{k}"))
    table.writerow(["path", "name", "probability", *later])

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            fields = [field for name, p in row.shown(top) for field in (name, "" if p is None else f"{p:.6f}")]
            table.writerow(map(to_cell, [row.path, *fields]))

    return write


def json_writer(file: IO[str], reject: bool) -> Callable[[Sequence[Row]], None]:
    """Return what writes rows as objects, one a line: path, names, probabilities, and `rejected` if images may be."""

    def write(rows: Sequence[Row]) -> None:
        for row in rows:
            content = {"path": row.path, "names": row.names, "probabilities": [round(p, 6) for p in row.probabilities]}
            if reject or row.rejected:  # a person may have said so
                content["rejected"] = row.rejected
            file.write(json.dumps(content, ensure_ascii=False) + "\n")

    return write


class Run:
    """One prediction of many images. Files appear when they are whole; the cache of features makes a second run quick.

    Args:
        classifier: with the class names asked for.
        args: of the command line (kdpl/predict.py).
        found: the images.
        teacher: what a fit's teacher sees, for the gallery: names by the digests of the images' contents.
        given: what a person said, by digest as well: it counts for more than a prediction; "": none of the classes.

    Attributes:
        unread: reasons by image.
        rows, without_keyword: how many images are done, and how many of them have a sidecar that cannot be completed.
        first_answer: time.time() of the first batch of rows; 0.0: there is none yet.

    Raises:
        ValueError: images must be rejected or sorted, and cannot be.
    """

    def __init__(
        self,
        classifier: "Classifier",
        args: argparse.Namespace,
        found: Found,
        teacher: Mapping[str, str] | None = None,
        given: Mapping[str, str] | None = None,
    ):
        self.classifier, self.args, self.found, self.teacher = classifier, args, found, teacher
        self.names = classifier.classnames
        self.given = {digest: name for digest, name in (given or {}).items() if name in {"", *self.names}}
        self.top = min(args.top, len(self.names))
        self.unread: dict[str, str] = dict(found.unreadable)
        self.rows, self.first_answer, self.without_keyword = 0, 0.0, 0
        if args.reject:
            classifier.bundle.decision.check_reject(self.names)
        folders = (("copy", args.copy_to), ("link", args.link_to), ("move", args.move_to))
        self.sorters = [Sorter(folder, how, self.names) for how, folder in folders if folder]
        self.prints = not args.quiet and not {args.csv, args.json, args.html} & STANDARD_OUTPUT
        if not args.no_cache:
            classifier.use_cache()

    def __call__(self, more: Iterable[list[str]] = ()) -> None:
        """Predict all images, print and write what is asked for.

        Args:
            more: lists of images that come later.
        """
        args, writers, gallery = self.args, [], None
        with ExitStack() as stack:
            if (known := self.classifier.decoder.known) is not None:
                stack.callback(known.save)  # also if the run is stopped
            files = {
                path: stack.enter_context(open_output(path, "w", **TEXT)) for path in (args.csv, args.json, args.html) if path
            }
            if args.csv:
                writers.append(csv_writer(files[args.csv], self.top))
            if args.json:
                writers.append(json_writer(files[args.json], args.reject))
            if args.html:  # it reads the photos, which may be moved next
                gallery = self._gallery(files[args.html])
                writers.append(gallery.write)
            hidden = True if args.quiet or args.watch else None  # None: without a terminal
            with tqdm(total=len(self.found.images), unit="image", smoothing=0.05, disable=hidden) as bar:
                for images in chain([self.found.images], more):
                    for rows in self._predict(images, bar):
                        for write in writers:
                            write(rows)
                        for file in files.values():
                            file.flush()
                        self._file_away(rows)
                        bar.update(len(rows))
            if gallery:
                gallery.finish()

    def _gallery(self, file: IO[str]) -> "GalleryWriter":
        from kdpl.classifier.gallery import GalleryWriter

        args, bundle = self.args, self.classifier.bundle
        title = f"{bundle.backbone}, " + (
            "hand-written sentences" if bundle.decision.sentences else f"prompts of {bundle.trainer}"
        )
        total, workers = len(self.found.images), args.workers
        return GalleryWriter(file, args.html, title, self.names, total, self.unread, self.top, workers, self.teacher or {})

    def _predict(self, images: list[str], bar: tqdm) -> Iterator[list[Row]]:
        def on_bad(image: str, error: "BadImageError") -> None:
            self.unread[image] = str(error)
            bar.update()
            tqdm.write(on_one_line(f"left out: {error}"), file=sys.stderr)

        args = self.args
        for answer in self.classifier.stream(images, args.batch_size, args.workers, on_bad, args.reject):
            values, indices = answer.probabilities.topk(self.top)  # (B, top)
            likeliest = [[self.names[i] for i in row] for row in indices.tolist()]
            rows = zip(answer.images, likeliest, values.tolist(), answer.rejected.tolist(), strict=True)
            yield [self._as_given(Row(*row)) for row in rows]

    def _as_given(self, row: Row) -> Row:
        """Return a row, or what a person said of its image: that name is certain."""
        name = self.given.get(file_digest(row.path).hex()) if self.given else None
        if not name:
            return row if name is None else row._replace(rejected=True)
        others = [other for other in row.names if other != name]
        return Row(row.path, [name, *others][: self.top], [1.0, *[0.0] * len(others)][: self.top])

    def _file_away(self, rows: Sequence[Row]) -> None:
        """Print rows, give their photos a keyword, and put them where they belong."""
        for row in rows:
            if self.prints:
                print_line(row.line(self.top))
            (name, _), *_ = row.shown(1)
            self.unread.pop(row.path, None)  # it was not finished when it was first looked at
            if self.args.keywords and (not row.rejected or sidecar_of(row.path).exists()):
                try:
                    write_keywords(row.path, [] if row.rejected else [name])
                except SidecarError as error:
                    self.without_keyword += 1
                    tqdm.write(on_one_line(f"no keyword: {error}"), file=sys.stderr)
            for sorter in self.sorters:
                sorter.add(row.path, name)
        self.rows += len(rows)
        self.first_answer = self.first_answer or time.time()

    def summary(self, seconds: float) -> list[str]:
        """Return the run in words: how many images, how fast, what was not read."""
        known, others = self.classifier.decoder.known, others_line(self.found.others)
        speed = f"{self.rows:,} images in {seconds:.1f} s ({self.rows / seconds:.1f} a second)"
        lines = [f"{speed}; {len(self.unread):,} could not be read"]
        if known is not None and known.hits:
            lines.append(f"{known.hits:,} of them were known: their features were in the cache")
        kinds = Counter(reason.rpartition(": ")[2] for reason in self.unread.values())
        lines += [f"  {count:,}: {kind}" for kind, count in kinds.most_common(10)]
        if others:
            lines.append(f"{others} not read")
        if self.without_keyword:
            lines.append(f"{self.without_keyword:,} got no keyword: their sidecars cannot be completed")
        return lines


def print_line(line: str) -> None:
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; files are still written to the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
