"""New images in folders, as they come: `kdpl predict --watch`."""

import os
import queue
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from kdpl.common.images import list_images

SETTLED = 1.0  # seconds for which a file has not changed until it counts as written
PAUSE = 0.2  # seconds between two looks at files that are being written


def check_watchdog() -> None:
    """Refuse to watch without the package.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import watchdog.observers  # noqa: F401
    except ImportError:
        raise ImportError("--watch needs the package watchdog: pip install 'kdpl[app]'.") from None


def new_images(folders: Sequence[str], seen: Sequence[str], stopped: Callable[[], bool]) -> Iterator[list[str]]:
    """Yield images that come into folders, at any depth, once they are written; an image that is unreadable may come again.

    Args:
        seen: images that were there before.
        stopped: whether to end.
    """
    from watchdog.events import FileSystemEvent, FileSystemEventHandler
    from watchdog.observers import Observer

    events: queue.SimpleQueue[None] = queue.SimpleQueue()

    class Handler(FileSystemEventHandler):
        def on_any_event(self, event: FileSystemEvent) -> None:
            if event.event_type in ("created", "modified", "moved", "closed"):
                events.put(None)

    observer = Observer()
    for folder in folders:
        observer.schedule(Handler(), folder, recursive=True)
    observer.start()
    done = {path: _state(path) for path in seen}
    waiting: dict[str, tuple] = {}
    look = True  # also for what came before the observer started
    try:
        while not stopped():
            try:
                events.get(timeout=PAUSE)
                look = True
            except queue.Empty:
                look = look or bool(waiting)
            while not events.empty():
                events.get()
            if not look:
                continue
            look, ready = False, []
            for path in (str(image) for folder in folders for image in list_images(folder).images):
                state = _state(path)
                if state is None or done.get(path) == state:
                    waiting.pop(path, None)
                elif waiting.get(path) == state and time.time() - state[-1] > SETTLED:
                    done[path] = waiting.pop(path)
                    ready.append(path)
                else:
                    waiting[path] = state
            if ready:
                yield ready
    finally:
        observer.stop()
        observer.join()


def _state(path: str) -> tuple | None:
    """Return what changes when a file is written to, the time of the last change last; None: it is gone."""
    try:
        status = os.stat(Path(path))
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ctime
