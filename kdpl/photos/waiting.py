"""What a command is doing: a line when it begins, and a bar with the time left while it lasts."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

EVERY = 6.0  # seconds between two states of a bar that is not on a terminal


@contextmanager
def doing(what: str, total: int = 0, unit: str = "", quiet: bool = False) -> Iterator[tqdm]:
    """Print on stderr what is being done, so that stdout holds results alone; with a total, give the bar to update."""
    if not quiet:
        print(f"{what} ...", file=sys.stderr, flush=True)
    every = 0.1 if sys.stderr.isatty() else EVERY
    with tqdm(
        total=total, unit=unit, desc=what, disable=quiet or not total, mininterval=every, leave=not sys.stderr.isatty()
    ) as bar:
        yield bar
