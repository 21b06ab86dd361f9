"""Stopping on request: SIGTERM, SIGUSR1, SIGINT (Ctrl-C) and SIGHUP end a command with the exit code INTERRUPTED; a training
saves its state first. One handler serves a command from its first line to its last.

What comes within `REPEATED_S` after the first signal, of any kind, is part of the same request: Slurm may deliver a signal
twice, and a terminal that is closed sends several. A later one has its default effect.
"""

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
    """The command ends with the exit code INTERRUPTED."""

    def __init__(self, message: str, printed: bool = False):
        super().__init__(INTERRUPTED)
        self.message, self.printed = message, printed

    def __str__(self) -> str:
        return self.message


class _State:
    """What the handler knows."""

    came: tuple[str, float] | None = None  # the signal that ends this process, and when it came
    saving: "StopRequest | None" = None  # the training that saves before the process ends


class StopRequest:
    """Records the signal that asks a training to stop, between `install` and `uninstall`: it saves, and calls `leave`."""

    def __init__(self):
        self.signal: str | None = None
        self._handlers = contextlib.ExitStack()

    def install(self) -> None:
        if _State.saving is not self:
            _State.saving = self
            self._handlers.enter_context(handled_signals())

    def uninstall(self) -> None:
        """Leave signals to what handled them before; after one has come the process is about to end, and stays protected."""
        if _State.saving is self and self.signal is None:
            _State.saving = None
            self._handlers.close()

    def leave(self) -> NoReturn:
        """End the training, whose state is saved."""
        message = f"Stopped by {self.signal or 'a signal'} after saving: the same command resumes the run"
        print(message, flush=True)
        raise Interrupted(message, printed=True)


@contextlib.contextmanager
def handled_signals() -> Iterator[None]:
    """Handle signals inside; a no-op outside the main thread, where Python allows no handlers."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        ignored = {getattr(signal, "SIGHUP", None)} if _ignores_hangup() else set()
        previous = {number: signal.signal(number, _take) for number in SIGNALS if number not in ignored}
        atexit.register(_ignore)  # in the last moments of a process Python handles them no more
    try:
        yield
    finally:
        for number, handler in previous.items() if _State.came is None else ():
            with contextlib.suppress(TypeError):  # a handler that was not Python's
                signal.signal(number, handler)


def _ignores_hangup() -> bool:
    return hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN  # nohup


def end_if_stopped() -> None:
    """Raise `Interrupted` if a signal has come; a library may have made another error of the first one."""
    if _State.came is not None and _State.saving is None:
        raise Interrupted(f"Stopped by {_State.came[0]}: the same command resumes or starts again")


def _take(number: int, frame: FrameType | None) -> None:
    name, now = signal.Signals(number).name, time.monotonic()
    if _State.came is None:
        _State.came = name, now
        if _State.saving is None:
            end_if_stopped()
        _State.saving.signal = name
    elif now - _State.came[1] > REPEATED_S:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


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
