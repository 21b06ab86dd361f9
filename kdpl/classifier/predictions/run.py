"""The run of `kdpl predict`: images in, rows out, resumed where an earlier run stopped."""

import argparse
import hashlib
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from kdpl.classifier.decoding import choose_size
from kdpl.classifier.known import FeatureCaches
from kdpl.classifier.predictions.files import Found, Output, ResumeError, State
from kdpl.classifier.predictions.tables import CsvWriter, JsonWriter, Row, Sorter, Writer, line_of, written
from kdpl.common.images import BadImageError
from kdpl.common.safe_text import on_one_line

if TYPE_CHECKING:
    from kdpl.classifier.classifier import Classifier

SAVE_EVERY_S = 2.0


class Run:
    """One prediction of many images.

    Args:
        classifier: with the class names asked for.
        args: of the command line (kdpl/predict.py).
        total: how many images there are.
        teacher: what a fit's teacher sees, for the gallery: names by the digests of the images' contents.

    Attributes:
        unread: reasons by image.
        counts: images by their likeliest name.
        resumed, rows: how many images an earlier run has done, and how many are done now.
        first_answer: time.time() of the first batch of rows; 0.0: there is none yet.
        reduction: at which size large JPEGs are decoded, in words; empty: at their own.

    Raises:
        ResumeError: outputs are there that belong to another run.
        ValueError: images must be rejected or sorted, and cannot be.
    """

    def __init__(
        self, classifier: "Classifier", args: argparse.Namespace, total: int, teacher: Mapping[str, str] | None = None
    ):
        self.classifier, self.args = classifier, args
        self.names = classifier.classnames
        self.top = min(args.top, len(self.names))
        self.unread: dict[str, str] = {}
        self.counts: Counter[str] = Counter()
        self.resumed = self.rows = 0
        self.reduction, self.first_answer = "", 0.0
        if args.reject:
            classifier.bundle.decision.check_reject(self.names)
        self.sorters = [
            Sorter(folder, link, self.names) for folder, link in ((args.copy_to, False), (args.link_to, True)) if folder
        ]
        self.writers: list[Writer] = []
        if args.csv:
            self.writers.append(CsvWriter(Output(args.csv), self.top))
        if args.json:
            self.writers.append(JsonWriter(Output(args.json), args.reject))
        if args.html:
            from kdpl.classifier.gallery.writer import GalleryWriter

            bundle = classifier.bundle
            how = "hand-written sentences" if bundle.decision.sentences else f"prompts of {bundle.trainer}"
            title = f"{bundle.backbone}, {how}"
            page = (Output(args.html), title, self.names, total, self.unread, self.top, args.workers, teacher)
            self.writers.append(GalleryWriter(*page))
        self.outputs = [writer.output for writer in self.writers]
        self.state = State(self.outputs, self.identity())
        self.prints = not args.quiet and not any(output.is_standard for output in self.outputs)

    def identity(self) -> dict[str, Any]:
        """Return what the rows depend on."""
        bundle = self.classifier.bundle
        digest = hashlib.sha256(repr((bundle.variant, bundle.options, bundle.preprocessing)).encode())
        for name, value in sorted(bundle.parameters.items()):
            digest.update(name.encode() + value.contiguous().numpy().tobytes())
        return {
            "prompts": digest.hexdigest(),
            "CLIP": self.classifier.clip.identity,
            "sentences": bundle.decision.sentences,
            "class names": self.names,
            "--top": self.top,
            "--calibrated": self.classifier.temperature,
            "--reject": bundle.decision.threshold if self.args.reject else None,
            "--full-size": self.args.full_size,
        }

    def __call__(self, images: list[str]) -> None:
        """Predict all images, print and write what is asked for."""
        done = self._resume()
        left = [image for image in images if written(image) not in done]
        if missing := len(done) - (len(images) - len(left)):
            raise ResumeError(
                f"'{self.state.path}' has rows of {missing:,} images that are not among those given: add --restart."
            )
        self.resumed = self.rows = len(done)
        try:
            self._prepare(left)
            self._predict(left, len(images))
            for writer in self.writers:
                writer.finish()
            self.state.remove()
        finally:
            for output in self.outputs:
                output.close()

    def summary(self, found: Found, seconds: float, media: str) -> list[str]:
        """Return the run in words: how many images, how fast, what was not read."""
        new = self.rows - self.resumed
        model = self.classifier.seconds["model"] / seconds
        lines = [
            f"{new:,} images in {seconds:.1f} s ({new / seconds:.1f} a second), {model:.0%} of it in the model; "
            f"{len(self.unread) + len(found.unreadable):,} could not be read"
        ]
        known = self.classifier.decoder.known
        if self.resumed:
            lines.append(f"{self.resumed:,} images were done before: the run was resumed")
        if known is not None and known.hits:
            lines.append(f"{known.hits:,} of them were known: their features were in the cache")
        if self.reduction:
            lines.append(self.reduction)
        kinds = Counter(reason.partition("' cannot be ")[2].partition(": ")[2] for reason in self._reasons(found))
        lines += [f"  {count:,}: {kind}" for kind, count in kinds.most_common(10)]
        if media:
            lines.append(f"{media} not read")
        return lines

    def _reasons(self, found: Found) -> list[str]:
        return [*found.unreadable, *self.unread.values()]

    def _resume(self) -> set[str]:
        """Open the outputs, and return the images that are done, as the tables write their paths."""
        if self.args.restart:
            self.state.remove()
        sizes = self.state.read()
        for writer in self.writers:
            writer.output.open(sizes.get(str(writer.output.path), 0))
            if not sizes or not writer.output.is_file:
                writer.begin()
        done = [set(writer.paths()) for writer in self.writers if sizes and writer.output.is_file]
        if any(paths != done[0] or len(paths) != self.state.rows for paths in done):
            raise ResumeError(f"The files that '{self.state.path}' lists have rows of different images: add --restart.")
        stopped = os.stat(self.state.path).st_mtime_ns if done else 0
        for path in done[0] if done else ():
            if os.path.exists(path) and os.stat(path).st_ctime_ns > stopped:  # unlike the time of modification, it is never set
                raise ResumeError(f"'{path}' has changed since it was predicted: add --restart.")
        return done[0] if done else set()

    def _prepare(self, images: list[str]) -> None:
        """Choose at which size large JPEGs are decoded, and find the features that are known."""
        decoder, cache = self.classifier.decoder, None if self.args.no_cache else FeatureCaches(self.classifier)
        if not self.args.full_size:
            chosen = choose_size(self.classifier, images, cache)
            decoder.least, self.reduction = chosen.least, chosen.words()
        decoder.known = cache(decoder.least) if cache else None
        if decoder.known is not None:
            decoder.known.hits = 0

    def _predict(self, images: list[str], total: int) -> None:
        args, saved = self.args, time.monotonic()
        with self._keeping_rows():
            quiet = True if args.quiet else None
            bar = tqdm(total=total, initial=self.resumed, unit="image", smoothing=0.05, disable=quiet)

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
                for writer in self.writers:
                    writer.write(rows)
                self.rows += len(rows)
                self.first_answer = self.first_answer or time.time()
                for output in self.outputs:
                    output.flush()
                if time.monotonic() - saved > SAVE_EVERY_S:
                    self.state.write(self.rows)
                    saved = time.monotonic()
                bar.update(len(rows))
            bar.close()

    def _rows(self, images: list[str], on_bad: Any) -> Iterator[list[Row]]:
        args = self.args
        for answer in self.classifier.answers(images, args.batch_size, args.workers, on_bad, args.reject):
            values, indices = answer.probabilities.topk(self.top)  # (B, top)
            likeliest = [[self.names[i] for i in row] for row in indices.tolist()]
            yield [Row(*row) for row in zip(answer.images, likeliest, values.tolist(), answer.rejected.tolist(), strict=True)]

    @contextmanager
    def _keeping_rows(self) -> Iterator[None]:
        """Record the rows of a run that ends early; without any, nothing is left."""
        try:
            yield
        except BaseException:
            if self.rows:
                with suppress(OSError):  # a full disk: what was recorded before is still true
                    self.state.write(self.rows)
            else:
                for output in self.outputs:
                    output.close()
                    output.remove_part()
                self.state.remove()
            raise


def print_line(line: str) -> None:
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; files are still written to the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
