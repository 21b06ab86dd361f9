"""What a person has decided in `kdpl open`: names and labels, as a file of changes that only grows.

The state is the replay of `changes.jsonl`, so that a killed server, a second tab or a second machine with the folder lose no
change that was answered. A photo is known by the digest of its content.
"""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from kdpl.common.safe_text import on_one_line

CHANGES = "changes.jsonl"
LONGEST = 200  # characters of a name


class ChangeError(ValueError):
    """A change cannot be made; the message is for the person."""


@dataclass
class Name:
    """A name and the words that were merged into it."""

    id: int
    name: str
    also: list[str] = field(default_factory=list)

    @property
    def words(self) -> list[str]:
        return [self.name, *self.also]


@dataclass
class Decided:
    """The replayed state."""

    names: list[Name] = field(default_factory=list)
    labels: dict[str, int | None] = field(default_factory=dict)  # digest of a photo: id of a name, None: none of the names
    checks: dict[str, bool] = field(default_factory=dict)  # randomly drawn photos since the names last changed: right?
    last: str = ""  # what undo would take back
    next_id: int = 0

    def find(self, text: str) -> Name | None:
        return next((each for each in self.names if _same(text) in map(_same, each.words)), None)

    def of(self, number: Any) -> Name:
        for each in self.names:
            if each.id == number:
                return each
        raise ChangeError("This name is gone: it was deleted or merged meanwhile.")

    def add(self, text: str) -> Name:
        """Return the name with this text, which is added if there is none."""
        text = _text(text)
        if known := self.find(text):
            return known
        self.names.append(Name(self.next_id, text))
        self.next_id += 1
        return self.names[-1]

    def _label(self, each: list[list[Any]]) -> None:
        for photos, text in each:
            self.labels |= dict.fromkeys(photos, None if text is None else self.add(text).id)

    def apply(self, change: Any) -> None:
        """Make one change.

        Raises:
            ChangeError: it names what is not there, or is none.
        """
        before = [(each.id, each.words) for each in self.names]
        match change:
            case {"do": "begin" | "add" as do, "names": [*texts]}:
                for text in texts:
                    self.add(text)
                self.last = f"add {', '.join(texts)}" if do == "add" else ""  # what there was at first stays
            case {"do": "rename", "name": number, "to": text}:
                each, text = self.of(number), _text(text)
                if self.find(text) not in (None, each):
                    raise ChangeError(f"There is a name '{text}' already: merge the two instead.")
                self.last, each.name = f"rename {each.name}", text
            case {"do": "merge", "name": number, "into": other}:
                each, into = self.of(number), self.of(other)
                if each is into:
                    raise ChangeError("A name cannot be merged into itself.")
                into.also += each.words
                self.names.remove(each)
                self.labels = {photo: into.id if label == each.id else label for photo, label in self.labels.items()}
                self.last = f"merge {each.name} into {into.name}"
            case {"do": "delete", "name": number}:
                each = self.of(number)
                self.names.remove(each)
                self.labels = {photo: label for photo, label in self.labels.items() if label != each.id}
                self.last = f"delete {each.name}"
            case {"do": "label", "each": [*each]}:
                self._label(each)
                count = sum(len(photos) for photos, _ in each)
                self.last = f"label {count} photo{'s' * (count != 1)}"
            case {"do": "check", "each": [[[photo], text]], "right": bool(right)}:  # "": wrong, and the right name is not known
                self.checks[photo] = right
                self._label([[[photo] if text else [], text or None]])
                self.last = "check of a photo"
            case _:
                raise ChangeError("The page and the server do not understand each other: reload the page.")
        if before != [(each.id, each.words) for each in self.names]:
            self.checks = {}  # they were of another classifier


def _same(text: str) -> str:
    return text.replace("_", " ").casefold()


def _text(name: Any) -> str:
    text = " ".join(name.split()) if isinstance(name, str) else ""
    if not 0 < len(text) <= LONGEST or on_one_line(text) != text:
        raise ChangeError(f"A name is one line of 1 to {LONGEST} characters, without control characters.")
    return text


def replay(changes: Iterable[dict[str, Any]]) -> Decided:
    """Return the state after changes; "undo" takes back the last one that is not taken back, but never the first names."""
    kept: list[dict[str, Any]] = []
    for change in changes:
        if change["do"] != "undo":
            kept.append(change)
        elif kept and kept[-1]["do"] != "begin":
            kept.pop()
    decided = Decided()
    for change in kept:
        try:
            decided.apply(change)
        except ChangeError:  # two machines at once: the later change is of a name that the earlier one took away
            continue
    return decided


class Journal:
    """The file of changes in a folder."""

    def __init__(self, folder: Path):
        self.path = folder / CHANGES
        self._lock = FileLock(folder / f".{CHANGES}.lock")

    def read(self) -> list[dict[str, Any]]:
        """Return all changes; a last line that a killed process has not finished is none."""
        *lines, _ = self.path.read_bytes().split(b"\n") if self.path.exists() else [b""]
        return [json.loads(line) for line in lines if line]

    def add(self, change: dict[str, Any]) -> None:
        """Write a change, after having seen that it can be made on all that are there; it is on the disk on return.

        Raises:
            ChangeError: it cannot.
        """
        with self._lock:
            changes = self.read()
            if change.get("do") != "undo":
                replay(changes).apply(change)
            with open(self.path, "ab") as file:
                file.truncate(self.path.read_bytes().rfind(b"\n") + 1)  # what a killed process has begun
                file.write(json.dumps(change, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0
