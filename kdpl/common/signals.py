"""Stopping on request: a run that receives SIGTERM or SIGUSR1 saves its state before it ends."""

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
    """The run has saved its state and ends with the exit code INTERRUPTED; no handler is needed."""

    def __init__(self, message: str):
        super().__init__(INTERRUPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Records SIGTERM and SIGUSR1 (Slurm's warning) after `install`.

    The first signal asks the run to save and stop; a second one of the same kind has its default effect. Slurm may deliver
    one signal twice within milliseconds, which counts as once.
    """

    def __init__(self):
        self.signal: str | None = None  # the name of the received signal
        self._received: dict[int, float] = {}  # time by signal
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Install the handlers; a no-op outside the main thread, where Python allows none."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._take)

    def uninstall(self) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            with contextlib.suppress(TypeError):  # a handler that was not Python's
                signal.signal(number, handler)
        self._previous = {}

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._received.setdefault(number, now) > REPEATED_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.signal = signal.Signals(number).name


def _end_workers() -> None:
    """Kill daemonic children, as multiprocessing is about to; data-loader workers ignore its SIGTERM."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


atexit.register(_end_workers)  # runs before multiprocessing's own handler (imported above), which would wait for ever


def leave_signals_to_the_parent(worker_id: int = 0) -> None:
    """Ignore the signals in a data-loader worker: a process group often receives them, and the run still needs the worker."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
