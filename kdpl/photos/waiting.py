"""What a command is doing: a line when it begins, and a sign of life every few seconds while it lasts."""

import sys
import threading
import time
from typing import TextIO

from tqdm import tqdm

EVERY = 6.0  # seconds between two lines


def duration(seconds: float) -> str:
    """Return a time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Doing:
    """Prints what is being done: with a total as a progress bar on a terminal, else as lines, with the time left.

    Args:
        total: of the steps that `reached` counts, each a `unit`; 0: there are none.
        out: by default stderr, so that stdout holds results alone.
    """

    def __init__(self, what: str, total: int = 0, unit: str = "", quiet: bool = False, out: TextIO | None = None):
        self.what, self.total, self.unit, self.quiet, self.out = what, total, unit, quiet, out or sys.stderr
        self._bar: tqdm | None = None
        self._done = 0
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._give_signs_of_life, daemon=True)

    def __enter__(self) -> "Doing":
        self._start = time.monotonic()
        if not self.quiet:
            if self.total and self.out.isatty():
                self._bar = tqdm(total=self.total, unit=self.unit, desc=self.what, file=self.out, leave=False)
            else:
                print(f"{self.what} ...", file=self.out, flush=True)
                self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        if self._bar is not None:
            self._bar.close()
        elif self._thread.is_alive():
            self._thread.join()

    def reached(self, done: int, total: int = 0) -> None:
        """Show that so many steps are done, of another total if one is given."""
        self.total, self._done = total or self.total, done
        if self._bar is not None:
            self._bar.total = self.total
            self._bar.update(done - self._bar.n)

    def _give_signs_of_life(self) -> None:
        while not self._end.wait(EVERY):
            passed, done = time.monotonic() - self._start, self._done
            state = f"{duration(passed)} so far"
            if done and self.total:
                left = duration(passed * (self.total - done) / done)
                state = f"{done:,} of {self.total:,} {self.unit}s, about {left} left"
            print(f"{self.what}: {state}", file=self.out, flush=True)
