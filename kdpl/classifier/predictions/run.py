"""The run of `kdpl predict`: images in, rows out."""

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from kdpl.classifier.known import known_features
from kdpl.classifier.predictions.files import Found
from kdpl.classifier.predictions.tables import CsvWriter, JsonWriter, Row, Sorter, Writer, line_of
from kdpl.common.files import file_digest
from kdpl.common.images import BadImageError
from kdpl.common.outputs import STANDARD_OUTPUT, open_output
from kdpl.common.safe_text import on_one_line

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

TEXT = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}  # a file name need not be UTF-8


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
        counts: images by their likeliest name.
        rows: how many images are done.
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
        self.counts: Counter[str] = Counter()
        self.rows, self.first_answer = 0, 0.0
        if args.reject:
            classifier.bundle.decision.check_reject(self.names)
        self.sorters = [
            Sorter(folder, link, self.names) for folder, link in ((args.copy_to, False), (args.link_to, True)) if folder
        ]
        if args.html:
            from kdpl.classifier.gallery.writer import thumbnails_folder

            thumbnails_folder(args.html, len(found.images))  # refused before the first image
        self.prints = not args.quiet and not {args.csv, args.json, args.html} & STANDARD_OUTPUT

    def __call__(self) -> None:
        """Predict all images, print and write what is asked for."""
        images = self.found.images
        self.classifier.decoder.known = None if self.args.no_cache else known_features(self.classifier)
        with ExitStack() as stack:
            if self.classifier.decoder.known is not None:
                stack.callback(self.classifier.decoder.known.save)  # also if the run is stopped
            writers = self._writers(stack)
            bar = stack.enter_context(
                tqdm(total=len(images), unit="image", smoothing=0.05, disable=True if self.args.quiet else None)
            )

            def on_bad(image: str, error: BadImageError) -> None:
                self.unread[image] = str(error)
                bar.update()
                tqdm.write(on_one_line(f"left out: {error}"), file=sys.stderr)

            for rows in self._rows(images, on_bad):
                for row in rows:
                    self.counts[row.shown(1)[0][0]] += 1
                    for sorter in self.sorters:
                        sorter.add(row)
                    if self.prints:
                        print_line(line_of(row, self.top))
                for writer in writers:
                    writer.write(rows)
                    writer.file.flush()
                self.rows += len(rows)
                self.first_answer = self.first_answer or time.time()
                bar.update(len(rows))
            for writer in writers:
                writer.finish()

    def _writers(self, stack: ExitStack) -> list[Writer]:
        args, writers = self.args, []

        def opened(path: str) -> Any:
            return stack.enter_context(open_output(path, "w", **TEXT))

        if args.csv:
            writers.append(CsvWriter(opened(args.csv), self.top))
        if args.json:
            writers.append(JsonWriter(opened(args.json), args.reject))
        if args.html:
            from kdpl.classifier.gallery.writer import GalleryWriter

            bundle = self.classifier.bundle
            how = "hand-written sentences" if bundle.decision.sentences else f"prompts of {bundle.trainer}"
            page = (f"{bundle.backbone}, {how}", self.names, len(self.found.images), self.unread, self.top, args.workers)
            writers.append(GalleryWriter(opened(args.html), args.html, *page, self.teacher))
        return writers

    def summary(self, seconds: float, media: str) -> list[str]:
        """Return the run in words: how many images, how fast, what was not read."""
        model = self.classifier.seconds["model"] / seconds
        lines = [
            f"{self.rows:,} images in {seconds:.1f} s ({self.rows / seconds:.1f} a second), {model:.0%} of it in the model; "
            f"{len(self.unread):,} could not be read"
        ]
        known = self.classifier.decoder.known
        if known is not None and known.hits:
            lines.append(f"{known.hits:,} of them were known: their features were in the cache")
        kinds = Counter(reason.partition("' cannot be ")[2].partition(": ")[2] for reason in self.unread.values())
        lines += [f"  {count:,}: {kind}" for kind, count in kinds.most_common(10)]
        if media:
            lines.append(f"{media} not read")
        return lines

    def _rows(self, images: list[str], on_bad: Any) -> Iterator[list[Row]]:
        args = self.args
        for answer in self.classifier.answers(images, args.batch_size, args.workers, on_bad, args.reject):
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


def print_line(line: str) -> None:
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; files are still written to the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
