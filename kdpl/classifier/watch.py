"""New images in folders, as they come: `kdpl predict --watch`."""

import time
from collections.abc import Callable, Iterator, Sequence

from kdpl.common import sources
from kdpl.common.images import list_images

PAUSE = 1.0  # seconds between two looks at the folders, and for which a file has not changed until it counts as written
SHARE = 10  # times as long as a look takes is the pause at least, so that many photos do not keep the machine busy


def new_images(folders: Sequence[str], seen: Sequence[str], stopped: Callable[[], bool]) -> Iterator[list[str]]:
    """Yield images that come into folders, at any depth, once they are written; one that has changed comes again.

    Args:
        seen: images that were there before.
        stopped: whether to end.
    """
    done, before = {path: _stamp(path) for path in seen}, {}
    while not stopped():
        start = time.monotonic()
        paths = [str(image) for folder in folders for image in list_images(folder).images]
        now = {path: _stamp(path) for path in paths}
        ready = [path for path in paths if now[path] and now[path] != done.get(path) and now[path] == before.get(path)]
        done |= {path: now[path] for path in ready}
        before = now
        if ready:
            yield ready
        end = time.monotonic() + max(PAUSE, SHARE * (time.monotonic() - start))
        while time.monotonic() < end and not stopped():
            time.sleep(0.1)


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        return sources.stamp(path)
    except OSError:  # gone meanwhile
        return None
