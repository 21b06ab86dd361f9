"""A copy of everything that is printed, in a file."""

import os
import sys
import time
from pathlib import Path
from typing import IO


class Logger:
    """A text stream that writes to the terminal and to a file, which must not exist yet."""

    def __init__(self, fpath: str | os.PathLike):
        # A second logger takes the first one's place: lines of the new run do not belong in the old run's file.
        self.console: IO[str] = sys.stdout.console if isinstance(sys.stdout, Logger) else sys.stdout
        Path(fpath).parent.mkdir(parents=True, exist_ok=True)
        # Line-buffered, so that the lines before a crash are on disk.
        self.file: IO[str] = open(fpath, "x", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, text: str) -> int:
        try:
            self.file.write(text)
        except OSError as error:  # a full disk, say: a log is not worth a run
            path, self.file = self.file.name, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
            self.console.write(f"'{path}' ends here, because it cannot be written any more: {error}\n")
        return self.console.write(text)

    def flush(self) -> None:
        self.file.flush()
        self.console.flush()

    def __getattr__(self, name: str):
        # encoding, isatty, fileno, ...: those of the terminal
        if name == "console":
            raise AttributeError(name)
        return getattr(self.console, name)


def setup_logger(output: str | os.PathLike | None = None) -> None:
    """Copy everything printed from now on to `log.txt` in a folder, or to a file whose name ends in .txt or .log.

    An existing log stays: the new one's name is then followed by the time.
    """
    if output is None:
        return
    path = Path(output)
    if path.suffix not in (".txt", ".log"):
        path /= "log.txt"
    stamped = path.with_name(path.name + time.strftime("-%Y-%m-%d-%H-%M-%S"))
    while path.exists():
        path, stamped = stamped, stamped.with_name(stamped.name + "-1")
    sys.stdout = Logger(path)
