"""A command from its first line to its last: its output is escaped, a signal ends it in one line, an unexpected error in a
traceback.

SIGTERM, SIGUSR1, SIGINT (Ctrl-C) and SIGHUP end it with the exit code INTERRUPTED; a training saves its state first. What comes
within `REPEATED_S` after the first signal is part of the same request: Slurm may deliver a signal twice, and a terminal that is
closed sends several. A later one has its default effect.
"""

import atexit
import contextlib
import multiprocessing.util
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import NoReturn

from kdpl.common import exits
from kdpl.common.safe_text import printable

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
REPEATED_S = 1.0


class Interrupted(SystemExit):
    """The command ends with the exit code INTERRUPTED, and prints the message, if there is one."""

    def __init__(self, message: str = ""):
        super().__init__(exits.INTERRUPTED)
        self.message = message


class _State:
    """What the handler knows."""

    came: tuple[str, float] | None = None  # the signal that ends this process, and when it came
    saving = False  # whether a training saves before the process ends


def stop_signal() -> str | None:
    """Return the signal that asks a training inside `saves_first` to stop: it saves, and calls `leave`."""
    return _State.came[0] if _State.came else None


def leave() -> NoReturn:
    """End a training, whose state is saved."""
    print(f"Stopped by {stop_signal() or 'a signal'} after saving: the same command resumes the run", flush=True)
    raise Interrupted


@contextlib.contextmanager
def saves_first() -> Iterator[None]:
    """Let the training inside save before a signal ends the process, which stays protected from then on."""
    with handled_signals():
        _State.saving = True
        try:
            yield
        finally:
            _State.saving = _State.came is not None


@contextlib.contextmanager
def handled_signals() -> Iterator[None]:
    """Handle signals inside; a no-op outside the main thread, where Python allows no handlers. nohup's SIGHUP stays ignored."""
    previous = {}
    if threading.current_thread() is threading.main_thread():
        handled = [s for s in SIGNALS if s is signal.SIGINT or signal.getsignal(s) != signal.SIG_IGN]
        previous = {number: signal.signal(number, _take) for number in handled}
        atexit.register(_ignore)  # in the last moments of a process Python handles them no more
    try:
        yield
    finally:
        for number, handler in previous.items() if _State.came is None else ():
            signal.signal(number, handler)


def _take(number: int, frame: FrameType | None) -> None:
    if _State.came is None:
        _State.came = signal.Signals(number).name, time.monotonic()
        _end_if_stopped()
    elif time.monotonic() - _State.came[1] > REPEATED_S:
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


def _end_if_stopped() -> None:
    if _State.came and not _State.saving:
        raise Interrupted(f"Stopped by {_State.came[0]}: the same command resumes or starts again")


def _ignore() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def starting_workers() -> Iterator[None]:
    """Hold the signals back inside, and in the processes that are started inside until they ignore them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def leave_signals_to_the_parent(worker_id: int = 0) -> None:
    """Ignore the signals in a data-loader worker: a process group often receives them, and the run still needs the worker."""
    _ignore()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # held back by `starting_workers`


def _end_workers() -> None:
    """Kill daemonic children, as multiprocessing is about to; data-loader workers ignore its SIGTERM."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()


atexit.register(_end_workers)  # runs before multiprocessing's own handler (imported above), which would wait for ever


def escape_streams() -> None:
    """Escape control characters, and what the console cannot encode, in all that is printed from now on."""
    for stream in (sys.stdout, sys.stderr):
        if "write" in vars(stream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names and paths that the terminal cannot show
        stream.write = partial(_write_printable, stream.write)


def _write_printable(write: Callable[[str], int], text: str) -> int:
    return write(printable(text))


def run_command(main: Callable[[], int]) -> int:
    """Return the exit status of a command."""
    escape_streams()
    try:
        with handled_signals():
            status = main()
            if status:
                _end_if_stopped()  # a library may have made another error of a signal
            return status
    except Interrupted as stop:
        if stop.message:
            print(stop.message, file=sys.stderr, flush=True)
        return exits.INTERRUPTED
    except Exception:
        traceback.print_exc()
        return exits.FAILED
