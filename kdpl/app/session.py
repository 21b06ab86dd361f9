"""A session of `kdpl open`: a pile of photos, what was decided of it, and how it is sorted by that.

Two things change it: the pass over the photos, in a thread of its own, and changes by a person. After each the pile is sorted
again and the bundle in OUT is written, so that `kdpl predict OUT` gives what the page shows.
"""

import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from kdpl.app.journal import ChangeError, Journal, replay
from kdpl.app.sorting import NONE, UNLABELLED, Sorter
from kdpl.bundle import Decision, write_bundle
from kdpl.classifier.gallery import THUMBNAIL, read_thumbnail
from kdpl.classifier.keywords import SidecarError, write_keywords
from kdpl.common.files import cache_dir
from kdpl.common.images import list_images
from kdpl.common.safe_text import REJECTED
from kdpl.photos.answers import head_bundle
from kdpl.photos.commands import doing
from kdpl.photos.evaluate import GIVEN, PHOTOS, wilson
from kdpl.photos.fitting import write_json, write_names
from kdpl.photos.pile import Towers, begin_pile, complete

SIDE = 1600  # longest side of a picture that is shown alone
FIRST = 64  # photos after which something is shown; then, whenever there are a third more


class Session:
    """What the page shows, for the server; all methods may be called from several threads.

    Args:
        folder: of the photos.
        out: the folder of the state.
        sorter: the models and the pile.
    """

    def __init__(self, folder: Path, out: Path, sorter: Sorter):
        self.folder, self.out, self.sorter = folder, out, sorter
        self.version, self.doing, self.total = 0, "Loading the models", 0
        self._journal, self._lock = Journal(out), threading.RLock()
        self.refresh()

    # ------------------------------------------------------------------------------------------------------ what is shown

    def state(self, paths: int = -1) -> dict[str, Any]:
        """Return all that the page shows, by photo lists as long as what is sorted; of the paths those from a number on."""
        with self._lock:
            if self._journal.size != self._size:  # another process has written there
                self.refresh()
            shown, decided = self._sorted, self._decided
            checked, right = len(decided.checks), sum(decided.checks.values())
            return {
                "title": self.folder.name,
                "version": self.version,
                "doing": self.doing,
                "seen": len(self.sorter.pile),
                "total": self.total,
                "names": [{"id": each.id, "name": each.name, "without": each.name in shown.without} for each in decided.names],
                "best": shown.best,
                "p": shown.p,
                "margin": shown.margin,
                "label": self._labels,
                "verdict": shown.verdict,
                "fits": shown.fits,
                "undo": decided.last,
                "checked": [checked, right, *(wilson(right, checked) if checked else (0, 100))],
                "sample": self._sample(),
                "paths": self.sorter.pile.paths[paths:] if paths >= 0 else [],
            }

    def _sample(self) -> int | None:
        """Return the next photo to check, of a random order that depends on nothing that was seen or labelled before."""
        order = list(range(len(self._labels)))
        random.Random(1).shuffle(order)
        contents, checks = self.sorter.pile.contents, self._decided.checks
        return next((i for i in order if self._labels[i] == UNLABELLED and contents[i] not in checks), None)

    def groups(self) -> list[tuple[str, list[int]]]:
        """Return groups of similar photos with a suggested name each, largest first."""
        with self._lock:
            return self.sorter.groups()

    # ----------------------------------------------------------------------------------------------------------- changes

    def change(self, wanted: Any) -> dict[str, Any]:
        """Make a change, written to the disk before it is answered; return the new state.

        Raises:
            ChangeError: it cannot be made.
        """
        wanted = wanted if isinstance(wanted, dict) else {}
        if wanted.get("do") == "keywords":
            self.write_keywords()
            return self.state()
        with self._lock:
            contents = dict(enumerate(self.sorter.pile.contents))
            try:
                if "each" in wanted:
                    wanted = {**wanted, "each": [[[contents[i] for i in photos], name] for photos, name in wanted["each"]]}
            except (KeyError, TypeError, ValueError):
                raise ChangeError("There is no photo with this number: reload the page.") from None
            self._journal.add(wanted)
            try:
                self.refresh()
            except ValueError as error:  # a name that is too long for the text tower
                self._journal.add({"do": "undo"})
                self.refresh()
                raise ChangeError(str(error)) from error
            return self.state()

    def refresh(self) -> None:
        """Read what was decided, sort the pile by it, and write the bundle."""
        with self._lock:
            self._size, pile = self._journal.size, self.sorter.pile
            self._decided = decided = replay(self._journal.read())
            place = {None: NONE} | {each.id: i for i, each in enumerate(decided.names)}
            given = {digest: place[label] for digest, label in decided.labels.items()}
            self._labels = [given.get(digest, UNLABELLED) for digest in pile.contents]
            known = {i: label for i, label in enumerate(self._labels) if label != UNLABELLED}
            self._sorted = shown = self.sorter.sort(decided.names, known)
            self.version += 1
            if shown.solved is None:  # `kdpl predict` needs two names
                return
            names = [each.name for each in decided.names]
            decision = Decision(temperature=1.0, classnames=names)
            write_bundle(self.out, head_bundle(self.sorter.words, names, shown.solved, shown.factor, len(pile), decision))
            write_names(self.out, names)
            labels = {digest: names[i] if i >= 0 else "" for digest, i in given.items()}
            write_json(self.out / GIVEN, labels)
            known = {digest: name or REJECTED for digest, name in labels.items()}  # `kdpl eval` leaves these out
            write_json(self.out / PHOTOS, dict.fromkeys(pile.contents, "") | known)

    def write_keywords(self) -> None:
        """Write each photo's name into its sidecar; say how far it is."""
        with self._lock:
            best, names = zip(self._sorted.best, self._labels, strict=True), [each.name for each in self._decided.names]
            places = [guess if label == UNLABELLED else label for guess, label in best]
            photos = [(path, names[i]) for path, i in zip(self.sorter.pile.paths, places, strict=True) if i >= 0]
        failed: list[str] = []
        for done, (path, name) in enumerate(photos, 1):
            try:
                write_keywords(self.folder / path, [name])
            except (SidecarError, OSError) as error:
                failed.append(str(error))
            if done % 100 == 0 or done == len(photos):
                missing = f" {len(failed):,} could not be: {failed[0]}" if failed else ""
                self.progressed(f"{done - len(failed):,} of {len(photos):,} sidecars written.{missing}")

    # -------------------------------------------------------------------------------------------------------------- photos

    def progressed(self, doing: str) -> None:
        """Show what is being done."""
        self.doing = doing
        self.version += 1

    def look(self, quiet: bool) -> None:
        """Encode the photos that the pile does not have; what is ready is sorted already."""
        try:
            self._look(quiet)
        except Exception as error:  # the person looks at the page, not at the terminal
            self.progressed(f"Stopped: {error}")
            print(f"error: {error}", file=sys.stderr, flush=True)

    def _look(self, quiet: bool) -> None:
        words, pile = self.sorter.words, self.sorter.pile
        self.progressed(f"Loading {words.student_name} and {words.teacher_name}")
        towers = Towers(words)
        pile = begin_pile(pile, words, self.folder)
        there = [path.relative_to(self.folder).as_posix() for path in list_images(self.folder).images]
        pile = pile.of([path for path in pile.paths if path in set(there)])
        known, bad, began = set(pile.paths), set(), time.monotonic()
        order = [*pile.paths, *(path for path in there if path not in known)]
        self.total, upto, seen = len(order), max(FIRST, len(pile)), len(pile)

        def on_seen(count: int) -> None:
            nonlocal seen
            seen += count
            rate = (seen - len(known)) / (time.monotonic() - began)
            left = (self.total - seen - len(bad)) / rate / 60
            self.progressed(f"{seen:,} of {self.total:,} photos, {rate:.0f} a second, {left:.1f} minutes left")
            bar.update(count)

        with doing("Looking at photos", self.total - len(known), "photo", quiet) as bar:
            while True:
                with self._lock:
                    self.sorter.pile = pile.distinct()
                    self.refresh()
                if seen + len(bad) == self.total:
                    break
                some = [path for path in order[:upto] if path not in bad]
                pile = complete(pile, self.folder, some, towers, self.out, lambda path, error: bad.add(path), on_seen)
                upto = upto * 4 // 3
        pile.write(self.out)
        none = "" if len(pile) else f"There is no photo that can be read in '{self.folder}'."
        self.progressed(f"{len(bad):,} photos could not be read" if bad else none)

    def picture(self, number: int, large: bool) -> bytes:
        """Return a photo as a WebP picture; a small one is kept once it was needed, outside the folder of the photos.

        Raises:
            IndexError: there is no such photo.
            OSError, ValueError: it cannot be read, or has become a link to somewhere else.
        """
        digest, path = self.sorter.pile.contents[number], self.folder / self.sorter.pile.paths[number]
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"'{path}' leads out of the folder of the photos.")
        file = cache_dir() / "thumbnails" / digest[:2] / f"{digest}.webp"
        if large or not file.exists():
            content = read_thumbnail(path, SIDE if large else THUMBNAIL)
            if large:
                return content
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(f".{threading.get_ident()}")
            part.write_bytes(content)
            part.replace(file)
        return file.read_bytes()
