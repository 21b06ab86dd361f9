"""Stopping on request: a run that is told to end by a signal saves first."""

import atexit
import contextlib
import multiprocessing.util
import signal
import threading
import time
from types import FrameType

from kdpl.common.exits import INTERRUPTED

SIGNALS = tuple(s for s in (getattr(signal, name, None) for name in ("SIGTERM", "SIGUSR1")) if s is not None)
REPEATED_S = 1.0


class Interrupted(SystemExit):
    """The run has saved its state and ends with the exit code INTERRUPTED; nobody needs to catch it."""

    def __init__(self, message: str):
        super().__init__(INTERRUPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Takes note of SIGTERM and of SIGUSR1, Slurm's warning, from `install` on.

    The first signal asks the run to save and stop; a later one of the same kind has its usual effect. Slurm may deliver one
    signal twice within some milliseconds, which counts as once.
    """

    def __init__(self):
        self.signal: str | None = None  # the name of the signal that came
        self._came: dict[int, float] = {}
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Take the signals from now on; nothing happens outside the main thread, where Python allows no handlers."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._take)

    def uninstall(self) -> None:
        """Give the signals back to whom they belonged."""
        for number, handler in self._previous.items():
            with contextlib.suppress(TypeError):  # a handler that was not Python's
                signal.signal(number, handler)
        self._previous = {}

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._came.setdefault(number, now) > REPEATED_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number).name


def _end_workers() -> None:
    """End, as multiprocessing is about to, the children that would not outlive this process; SIGTERM they may not hear."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


atexit.register(_end_workers)  # runs before what multiprocessing, imported above, has registered: it waits for them for ever


def leave_signals_to_the_parent(worker_id: int = 0) -> None:
    """Ignore the signals, in a data-loader worker: they often go to a whole process group, and the run needs it to the end."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
