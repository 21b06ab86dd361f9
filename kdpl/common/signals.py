"""Stopping on request: a run that receives SIGTERM, SIGUSR1, SIGINT (Ctrl-C) or SIGHUP saves its state before it ends."""

import atexit
import contextlib
import multiprocessing.util
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from kdpl.common.exits import INTERRUPTED

NAMES = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP")
SIGNALS = tuple(s for s in (getattr(signal, name, None) for name in NAMES) if s is not None)
REPEATED_S = 1.0
_CAN_BE_HELD = hasattr(signal, "pthread_sigmask")  # not on Windows, where no process group gets them


class Interrupted(SystemExit):
    """The run has saved its state and ends with the exit code INTERRUPTED; no handler is needed."""

    def __init__(self, message: str):
        super().__init__(INTERRUPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class StopRequest:
    """Records the signals that ask a run to stop after `install`, so that it saves first.

    What comes within `REPEATED_S` after the first one, of any kind, is part of the same request: Slurm may deliver a signal
    twice, and a terminal that is closed sends several. A later one has its default effect.
    """

    def __init__(self):
        self.signal: str | None = None  # the name of the first received signal
        self._first = 0.0  # when it came
        self._previous: dict[int, object] = {}

    def install(self) -> None:
        """Install the handlers; a no-op outside the main thread, where Python allows none."""
        if self._previous or threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._take)
        atexit.register(self._ignore_if_stopped)

    def uninstall(self) -> None:
        """Restore the previous handlers, unless a signal came: then the process is about to end, and stays protected."""
        if self.signal is None:
            for number, handler in self._previous.items():
                with contextlib.suppress(TypeError):  # a handler that was not Python's
                    signal.signal(number, handler)
            self._previous = {}

    def leave(self) -> NoReturn:
        """End the run, whose state is saved."""
        message = f"Stopped by {self.signal or 'a signal'} after saving: the same command resumes the run"
        print(message, flush=True)
        raise Interrupted(message)

    def _take(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._first = signal.Signals(number).name, now
        elif now - self._first > REPEATED_S:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    def _ignore_if_stopped(self) -> None:
        """Ignore signals in the last moments of a process, in which Python handles them no more."""
        if self.signal is not None:
            _ignore()


@contextlib.contextmanager
def stopping_at_once(doing: str) -> Iterator[None]:
    """Raise `Interrupted` on a signal, in a part of a run that has nothing to save.

    Args:
        doing: that part, for the message: "before the training", "during a test".
    """
    previous = {}

    def stop(number: int, frame: FrameType | None) -> None:
        for each in SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        message = f"Stopped by {signal.Signals(number).name} {doing}: the same command does it again"
        print(message, flush=True)
        raise Interrupted(message)

    if threading.current_thread() is threading.main_thread():
        previous = {number: signal.signal(number, stop) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            if signal.getsignal(number) is stop:  # else one came, or a training protects its end
                signal.signal(number, handler)


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _end_workers() -> None:
    """Kill daemonic children, as multiprocessing is about to; data-loader workers ignore its SIGTERM."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


atexit.register(_end_workers)  # runs before multiprocessing's own handler (imported above), which would wait for ever


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Hold the signals back inside, and in the processes that are started inside until they ignore them."""
    if not _CAN_BE_HELD:
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_parent(worker_id: int = 0) -> None:
    """Ignore the signals in a data-loader worker: a process group often receives them, and the run still needs the worker."""
    _ignore()
    if _CAN_BE_HELD:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # held back by `starting_workers`
