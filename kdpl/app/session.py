"""A session of `kdpl open`: a pile of photos, what was decided of it, and how it is sorted by that.

Two things change it: the pass over the photos, in a thread of its own, and changes by a person. After each the pile is sorted
again and the bundle in OUT is written, so that `kdpl predict OUT` gives what the page shows.
"""

import io
import os
import random
import threading
from pathlib import Path
from typing import Any

from PIL import Image

from kdpl.app.groups import group, suggest
from kdpl.app.journal import ChangeError, Decided, Journal, replay
from kdpl.app.sorting import Sorted, Sorter
from kdpl.bundle import Decision, write_bundle
from kdpl.classifier.keywords import SidecarError, write_keywords
from kdpl.common import sources
from kdpl.common.files import cache_dir
from kdpl.common.images import to_rgb
from kdpl.photos.answers import head_bundle
from kdpl.photos.evaluate import GIVEN, TRAIN, wilson
from kdpl.photos.fitting import write_json, write_names, write_records
from kdpl.photos.pile import Pile

NONE, UNLABELLED = -1, -2  # in place of the number of a name
SHOWN_BY_BROWSERS = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "GIF": "image/gif"}
LARGEST = 25 * 2**20  # bytes of a picture that is sent as it is
SIDE = 2400  # longest side of one that is not
KINDS = {  # of changes: what each must hold
    "add": {"names": list}, "rename": {"name": int, "to": str}, "merge": {"name": int, "into": int}, "delete": {"name": int},
    "label": {}, "unlabel": {"photos": list}, "group": {"photos": list, "name": str}, "check": {"photo": int, "right": bool},
    "undo": {}, "keywords": {},
}  # fmt: skip


class Session:
    """What the page shows, for the server; all methods may be called from several threads.

    Args:
        folder: of the photos.
        out: the folder of the state.
        sorter: the models and the pile.
    """

    def __init__(self, folder: Path, out: Path, sorter: Sorter):
        self.folder, self.out, self.sorter = folder, out, sorter
        self.title = folder.name
        self.version, self.run = 0, random.SystemRandom().randrange(2**30)
        self.doing = "Loading the models"
        self.total = 0
        self._journal = Journal(out)
        self._told = ""
        self._size = -1  # of the journal that the state is of
        self._lock = threading.RLock()
        self._decided, self._sorted = Decided(), Sorted()
        self._numbers: dict[str, int] = {}  # of the photos, by digest
        self._thumbnails = cache_dir() / "thumbnails"
        self.refresh()

    # ------------------------------------------------------------------------------------------------------ what is shown

    def state(self) -> dict[str, Any]:
        """Return all that the page shows but the paths; by photo, lists as long as what is sorted."""
        with self._lock:
            if self._journal.size != self._size:  # another process has written there
                self.refresh()
            shown, decided, pile = self._sorted, self._decided, self.sorter.pile
            place = {each.id: i for i, each in enumerate(decided.names)}
            labels = [self._label(digest, place) for digest in pile.contents[: len(shown.best)]]
            groups: list[list[int]] = [[] for _ in decided.names]
            for i, (best, label) in enumerate(zip(shown.best, labels, strict=True)):
                where = best if label == UNLABELLED else label
                if where >= 0:
                    groups[where].append(i)
            names = [
                {
                    "id": each.id,
                    "name": each.name,
                    "photos": len(photos),
                    "sure": sum(shown.p[i] for i in photos) / len(photos) if photos else 0,
                    "note": shown.notes.get(each.name, ""),
                }
                for each, photos in zip(decided.names, groups, strict=True)
            ]
            right = sum(right for _, right in decided.checks)
            low, high = wilson(right, len(decided.checks)) if decided.checks else (0, 1)
            return {
                "version": self.version,
                "run": self.run,
                "doing": self.doing,
                "seen": len(pile.paths),
                "total": self.total,
                "names": names,
                "best": shown.best,
                "p": shown.p,
                "margin": shown.margin,
                "label": labels,
                "verdict": shown.verdict,
                "fits": shown.fits,
                "undo": decided.last,
                "checked": {"n": len(decided.checks), "right": right, "low": low, "high": high},
                "told": self._told,
            }

    def paths(self, begin: int) -> list[str]:
        """Return the paths of the photos from a number on, below their folder."""
        return self.sorter.pile.paths[max(0, begin) :]

    def sample(self) -> dict[str, Any]:
        """Return the next photo to check, of a random order that does not depend on what was seen or labelled before."""
        with self._lock:
            decided, pile = self._decided, self.sorter.pile
            order = list(range(len(self._sorted.best)))
            random.Random(1).shuffle(order)
            skipped = decided.checked | set(decided.labels)
            return {"photo": next((i for i in order if pile.contents[i] not in skipped), None)}

    def groups(self) -> list[dict[str, Any]]:
        """Return groups of similar photos with a suggested name each, largest first."""
        with self._lock:
            count = len(self._sorted.best)
            features = self.sorter.pile.teacher[:count].float()
        if not count:
            return []
        names, texts = self.sorter.vocabulary()
        return [{"name": name, "photos": photos} for name, photos in suggest(features, group(features), names, texts)]

    # ----------------------------------------------------------------------------------------------------------- changes

    def change(self, wanted: Any) -> dict[str, Any]:
        """Make a change, written to the disk before it is answered; return the new state.

        Raises:
            ChangeError: it cannot be made.
        """
        kind = wanted.get("do") if isinstance(wanted, dict) else None
        if kind not in KINDS or any(not isinstance(wanted.get(key), form) for key, form in KINDS[kind].items()):
            raise ChangeError("The page and the server do not understand each other: reload the page.")
        with self._lock:
            if kind == "keywords":
                self._told = self.write_keywords()
                self.version += 1
            else:
                self._journal.add(self._change(kind, wanted))
                self.refresh()
            return self.state()

    def _change(self, kind: str, wanted: dict[str, Any]) -> dict[str, Any]:
        """Return a change as the journal has it: photos by their digests."""
        change: dict[str, Any] = {"do": kind, **{key: wanted[key] for key in KINDS[kind]}}
        if kind == "add":
            change["names"] = [_text(name) for name in wanted["names"]]
        if kind == "rename":
            change["to"] = _text(wanted["to"])
        if kind in ("label", "group"):
            each = wanted.get("each") or [[wanted.get("photos") or [], wanted.get("name")]]
            change = {"do": "label", "each": [[self._digests(p), name if name is None else _text(name)] for p, name in each]}
        if kind == "unlabel":
            change["photos"] = self._digests(wanted["photos"])
        if kind == "check":
            (change["photo"],) = self._digests([wanted["photo"]])
            change["name"] = _text(wanted["name"]) if wanted.get("name") else ""
        return change

    def _digests(self, photos: Any) -> list[str]:
        contents = self.sorter.pile.contents
        if not isinstance(photos, list) or not photos or any(type(i) is not int or not 0 <= i < len(contents) for i in photos):
            raise ChangeError("There is no photo with this number: reload the page.")
        return [contents[i] for i in photos]

    def _label(self, digest: str, place: dict[int, int]) -> int:
        label = self._decided.labels.get(digest, UNLABELLED)
        return NONE if label is None else place.get(label, UNLABELLED)

    def refresh(self) -> None:
        """Read what was decided, sort the pile by it, and write the bundle."""
        with self._lock:
            self._size = self._journal.size
            self._decided = decided = replay(self._journal.read())
            place = {each.id: i for i, each in enumerate(decided.names)}
            labels = {i: self._label(digest, place) for i, digest in enumerate(self.sorter.pile.contents)}
            known = {i: label for i, label in labels.items() if label != UNLABELLED}
            self._sorted = self.sorter.sort([each.words for each in decided.names], known)
            self._write(place)
            self.version += 1

    def _write(self, place: dict[int, int]) -> None:
        """Write what `kdpl predict` reads, once there are two names."""
        shown, pile, words = self._sorted, self.sorter.pile, self.sorter.words
        if shown.solved is None:
            return
        decision = Decision(temperature=1.0, classnames=shown.names)
        write_bundle(self.out, head_bundle(words, shown.names, shown.solved, shown.factor, len(pile), decision))
        write_names(self.out, shown.names)
        given = {digest: self._label(digest, place) for digest in self._decided.labels}
        write_json(self.out / GIVEN, {digest: shown.names[i] if i >= 0 else "" for digest, i in given.items()})
        labels = {path: "" for path, digest in zip(pile.paths, pile.contents, strict=True) if digest in given}
        write_records(self.out, pile, {TRAIN: range(len(pile))}, labels)  # `kdpl eval` leaves these out

    def grow(self, pile: Pile, doing: str, total: int) -> None:
        """Take the photos that are ready, and sort them."""
        with self._lock:
            self.sorter.grow(pile)
            self.doing, self.total = doing, total
            self.refresh()

    def progressed(self, doing: str) -> None:
        """Take note of where the pass over the photos is."""
        self.doing = doing
        self.version += 1

    def write_keywords(self) -> str:
        """Write each photo's name into its sidecar; return how many were written, in words."""
        state, failed, written = self.state(), [], 0
        for path, best, label in zip(self.sorter.pile.paths, state["best"], state["label"], strict=False):
            where = best if label == UNLABELLED else label
            if where == NONE:
                continue
            try:
                write_keywords(self.folder / path, [state["names"][where]["name"]])
                written += 1
            except (SidecarError, OSError) as error:
                failed.append(str(error))
        return f"{written:,} sidecars written." + (f" {len(failed):,} could not be: {failed[0]}" if failed else "")

    # ---------------------------------------------------------------------------------------------------------- pictures

    def thumbnail(self, number: int) -> tuple[bytes, str]:
        """Return a small WebP picture of a photo, made when it is first needed, outside the folder of the photos.

        Raises:
            IndexError: there is no such photo.
            OSError, ValueError: it cannot be read.
        """
        from kdpl.classifier.gallery import read_thumbnail

        digest, path = self.sorter.pile.contents[number], self._path(number)
        file = self._thumbnails / digest[:2] / f"{digest}.webp"
        if not file.exists():
            content = read_thumbnail(path)
            file.parent.mkdir(parents=True, exist_ok=True)
            part = file.with_name(f"{file.name}.{os.getpid()}.{threading.get_ident()}")
            part.write_bytes(content)
            part.replace(file)
        return file.read_bytes(), "image/webp"

    def photo(self, number: int) -> tuple[bytes, str]:
        """Return a photo as browsers show it: as it is, or as a JPEG; errors as for `thumbnail`."""
        path = self._path(number)
        with Image.open(sources.opened(path)) as image:
            kind = SHOWN_BY_BROWSERS.get(image.format or "")
            if kind and sources.stamp(path).size <= LARGEST:
                return sources.content(path), kind
            image.draft("RGB", (SIDE, SIDE))
            small = to_rgb(image)
        small.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        small.save(file, "jpeg", quality=88)
        return file.getvalue(), "image/jpeg"

    def _path(self, number: int) -> Path:
        """Return the file of a photo; one that has become a link to somewhere else is none."""
        path = self.folder / self.sorter.pile.paths[number]
        if not path.resolve().is_relative_to(self.folder.resolve()):
            raise ValueError(f"'{path}' leads out of the folder of the photos.")
        return path


def _text(name: Any) -> str:
    """Return a name on one line.

    Raises:
        ChangeError: it is none.
    """
    text = " ".join(str(name).split()) if isinstance(name, str) else ""
    if not 0 < len(text) <= 200 or not text.isprintable():
        raise ChangeError("A name is one line of 1 to 200 characters.")
    return text
