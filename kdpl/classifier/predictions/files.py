"""The images of a prediction, and the outputs its rows go to: a file that appears when it is whole, or a device at once.

The rows of a file are collected in `<file>.kdpl-part` beside it. A run that is stopped leaves that, and the same command
resumes from it; `state` says how many bytes of it are good, and which run it belongs to. What is written to a device, a FIFO
or the standard output is out at once.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from kdpl.common.files import PART, atomic_write, naming_full_disks, replace
from kdpl.common.image_files import list_images
from kdpl.common.outputs import STANDARD_OUTPUT, is_file

STATE = ".state.json"


# --- images ---


class InputError(ValueError):
    """A flag or an image path cannot be used."""


class Found(NamedTuple):
    """The images of a prediction.

    Attributes:
        images: paths, each once.
        unreadable: reasons of entries in folders that cannot be read.
        media: pictures and films in folders that are not read, by suffix.
    """

    images: list[str]
    unreadable: list[str]
    media: Counter[str]


def find(given: Sequence[str]) -> Found:
    """Return the images of files, folders and "-", which stands for a list of paths on the standard input.

    The list has a path in each line, or, as `find -print0` writes it, paths that end in a zero byte.

    Raises:
        InputError: a path does not exist, or a folder has no image.
    """
    missing = [path for path in given if path != "-" and not os.path.lexists(path)]
    if missing:
        shown = ", ".join(f"'{path}'" for path in missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise InputError(f"There is no {shown} in '{os.getcwd()}': expected image files or folders of images.")
    images: dict[str, None] = {}
    unreadable, media = [], Counter()
    for path in given:
        if path == "-":
            images |= dict.fromkeys(_listed())
            continue
        if not os.path.isdir(path):
            images[path] = None
            continue
        try:
            listing = list_images(path, natural=True)
        except OSError as error:
            raise InputError(f"The folder '{path}' cannot be listed: {error.strerror}.") from None
        if not listing.images:
            others = listing.others + len(listing.unreadable)
            raise InputError(
                f"'{path}' holds no images, at any depth ({others:,} other files). Name files one by one if their suffix is "
                "unusual."
            )
        images |= dict.fromkeys(map(str, listing.images))
        unreadable += listing.unreadable.values()
        media += listing.media
    return Found(list(images), unreadable, media)


def _listed() -> list[str]:
    data = sys.stdin.buffer.read()
    paths = [os.fsdecode(line.rstrip(b"\r")) for line in data.split(b"\0" if b"\0" in data else b"\n") if line.strip()]
    if not paths:
        raise InputError("The list of paths on the standard input (-) is empty: expected a path in each line.")
    return paths


# --- outputs ---


class ResumeError(ValueError):
    """The part of a file that is there belongs to another run."""


class Output:
    """Text on its way to a path.

    A link is followed: its target is written, and the link stays. A device or a FIFO is written to and never replaced.

    Args:
        path: as it was given; "-" is the standard output.

    Attributes:
        is_file: whether a file is made, which appears at `finish`; False: what is written is out at once.
    """

    def __init__(self, path: str):
        self.name = path
        self.is_standard = path in STANDARD_OUTPUT
        self.path = Path(os.path.realpath(path))
        self.is_file = not self.is_standard and is_file(self.path)
        self.part = self.path.with_name(self.path.name + PART)
        self._file: IO[str] | None = None

    def open(self, good_bytes: int = 0) -> None:
        """Open it to append rows: a part from its first `good_bytes` bytes on, whatever follows them is dropped."""
        text = {"encoding": "utf-8", "errors": "backslashreplace", "newline": ""}
        if self.is_standard:
            self._file = sys.stdout
        elif self.is_file:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.part, "r+" if good_bytes else "w", **text)  # noqa: SIM115
            self._file.seek(good_bytes)
            self._file.truncate()
        else:
            self._file = open(self.path, "w", **text)  # noqa: SIM115

    def write(self, text: str) -> None:
        with naming_full_disks(self.path):
            try:
                self._file.write(text)
            except BrokenPipeError:  # the reader has seen enough
                self._file = open(os.devnull, "w")  # noqa: SIM115

    def flush(self, to_disk: bool = False) -> int:
        """Hand everything to the operating system, or to the disk, and return the size of a part."""
        with naming_full_disks(self.path):
            try:
                self._file.flush()
                if to_disk and self.is_file:
                    os.fsync(self._file.fileno())
            except BrokenPipeError:
                self._file = open(os.devnull, "w")  # noqa: SIM115
        return os.fstat(self._file.fileno()).st_size if self.is_file else 0

    def close(self) -> None:
        if self._file is not None and not self.is_standard:
            with suppress(OSError):
                self._file.close()
        self._file = None

    def finish(self) -> None:
        """Make the part the file."""
        self.flush()
        self.close()
        if self.is_file:
            replace(self.part, self.path)

    def remove_part(self) -> None:
        if self.is_file:
            self.part.unlink(missing_ok=True)


class State:
    """What a run has written so far, in a file beside its first output, so that the same command can resume.

    Args:
        outputs: of the run; those that are not files cannot be resumed and start again.
        run: what the rows depend on. A part from a run that differs is refused.
    """

    def __init__(self, outputs: Sequence[Output], run: dict[str, Any]):
        self.outputs = [output for output in outputs if output.is_file]
        self.run = json.loads(json.dumps(run))
        first = self.outputs[0].part if self.outputs else None
        self.path = first.with_name(first.name + STATE) if first else None
        self.rows = 0

    def read(self) -> dict[str, int]:
        """Return the good bytes of every output by its path; empty where there is nothing to resume.

        Raises:
            ResumeError: the rows that are there are of another run.
        """
        if self.path is None or not self.path.is_file():
            return {}
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            run, sizes, rows = content["run"], content["bytes"], content["rows"]
        except (ValueError, KeyError, TypeError, RecursionError):
            raise ResumeError(f"'{self.path}' is damaged, so that the run cannot be resumed: add --restart.") from None
        if different := sorted(key for key in {*run, *self.run} if run.get(key) != self.run.get(key)):
            raise ResumeError(
                f"'{self.path}' is of a run with other settings ({', '.join(different)}): rows of both would be mixed. Add "
                "--restart to start again, or choose another output."
            )
        expected = {str(output.path) for output in self.outputs}
        parts = {str(output.path): output.part for output in self.outputs}
        if set(sizes) != expected:
            raise ResumeError(
                f"'{self.path}' is of a run with the outputs {', '.join(sorted(sizes))}: add --restart to start again."
            )
        if any(not part.is_file() or part.stat().st_size < sizes[path] for path, part in parts.items()):
            raise ResumeError(f"The rows that '{self.path}' lists are not all there: add --restart to start again.")
        self.rows = rows
        return sizes

    def write(self, rows: int) -> None:
        """Record that so many rows are in all outputs."""
        self.rows = rows
        if self.path is not None:
            sizes = {str(output.path): output.flush(to_disk=True) for output in self.outputs}
            with atomic_write(self.path, "w") as file:
                json.dump({"run": self.run, "rows": rows, "bytes": sizes}, file)

    def remove(self) -> None:
        if self.path is not None:
            self.path.unlink(missing_ok=True)
