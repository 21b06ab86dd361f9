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

CHANGES = "changes.jsonl"


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
    checks: list[tuple[str, bool]] = field(default_factory=list)  # randomly drawn photos since the names last changed: right?
    checked: set[str] = field(default_factory=set)  # all photos that were ever checked
    last: str = ""  # what undo would take back
    next_id: int = 0

    def find(self, name: str) -> Name | None:
        return next((each for each in self.names if name in each.words), None)

    def of(self, number: Any) -> Name:
        for each in self.names:
            if each.id == number:
                return each
        raise ChangeError("This name is gone: it was deleted or merged meanwhile.")

    def add(self, text: str) -> Name:
        """Return the name with this text, which is added if there is none."""
        if known := self.find(text):
            return known
        self.names.append(Name(self.next_id, text))
        self.next_id += 1
        return self.names[-1]

    def apply(self, change: dict[str, Any]) -> None:
        """Make one change.

        Raises:
            ChangeError: it names what is not there.
        """
        before = [(each.id, each.words) for each in self.names]
        self.last = getattr(self, f"_{change['do']}")(change)
        if before != [(each.id, each.words) for each in self.names]:
            self.checks = []  # they were of another classifier

    def _add(self, change: dict[str, Any]) -> str:
        for text in change["names"]:
            self.add(text)
        return "add " + ", ".join(change["names"][:3])

    def _rename(self, change: dict[str, Any]) -> str:
        each, other = self.of(change["name"]), self.find(change["to"])
        if other and other is not each:
            raise ChangeError(f"There is a name '{change['to']}' already: merge the two instead.")
        before, each.name = each.name, change["to"]
        return f"rename {before}"

    def _merge(self, change: dict[str, Any]) -> str:
        each, into = self.of(change["name"]), self.of(change["into"])
        if each is into:
            raise ChangeError("A name cannot be merged into itself.")
        into.also += each.words
        self.names.remove(each)
        self.labels = {photo: into.id if label == each.id else label for photo, label in self.labels.items()}
        return f"merge {each.name} into {into.name}"

    def _delete(self, change: dict[str, Any]) -> str:
        each = self.of(change["name"])
        self.names.remove(each)
        self.labels = {photo: label for photo, label in self.labels.items() if label != each.id}
        return f"delete {each.name}"

    def _label(self, change: dict[str, Any]) -> str:
        for photos, text in change["each"]:
            self.labels |= dict.fromkeys(photos, None if text is None else self.add(text).id)
        count = sum(len(photos) for photos, _ in change["each"])
        return f"label {count} photo{'s' if count > 1 else ''}"

    def _unlabel(self, change: dict[str, Any]) -> str:
        for photo in change["photos"]:
            self.labels.pop(photo, None)
        return "take labels away"

    def _check(self, change: dict[str, Any]) -> str:
        self.checks.append((change["photo"], change["right"]))
        self.checked.add(change["photo"])
        if change.get("name"):
            self.labels[change["photo"]] = self.add(change["name"]).id
        return "check of a photo"


def replay(changes: Iterable[dict[str, Any]]) -> Decided:
    """Return the state after changes; "undo" takes back the last one that is not taken back."""
    kept: list[dict[str, Any]] = []
    for change in changes:
        if change["do"] != "undo":
            kept.append(change)
        elif kept:
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
        if not self.path.exists():
            return []
        *lines, _ = self.path.read_bytes().split(b"\n")
        return [json.loads(line) for line in lines if line]

    def add(self, change: dict[str, Any]) -> None:
        """Write a change, after having seen that it can be made on all that are there; it is on the disk on return.

        Raises:
            ChangeError: it cannot.
        """
        with self._lock:
            changes = self.read()
            if change["do"] != "undo":
                replay(changes).apply(change)
            with open(self.path, "ab") as file:
                file.truncate(self._whole())
                file.write(json.dumps(change, ensure_ascii=False).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def _whole(self) -> int:
        """Return the length of the finished lines: what a killed process has begun is cut off."""
        return self.path.read_bytes().rfind(b"\n") + 1

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0
