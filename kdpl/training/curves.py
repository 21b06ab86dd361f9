"""TensorBoard curves whose write errors end the curves, not the run."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

_REPORT = threading.excepthook  # Python's, or that of the program that this is a part of


class Curves:
    """A TensorBoard writer that does nothing more after an error of writing, which is printed.

    Args:
        writer: a `SummaryWriter`; its methods are called as on itself.
    """

    def __init__(self, writer: Any):
        self.writer = writer

    def __getattr__(self, name: str) -> Callable[..., None]:
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        ended = True
        with errors_reported():
            if self.writer is not None:
                getattr(self.writer, name)(*args, **kwargs)
            ended = False
        if ended:
            self.writer = None


@contextmanager
def errors_reported() -> Iterator[None]:
    """Print an error of writing curves instead of raising it."""
    threading.excepthook = _report_unless_of_curves
    try:
        yield
    except OSError as error:
        print(f"The TensorBoard curves end here, because they cannot be written: {error}")


def _report_unless_of_curves(args: threading.ExceptHookArgs) -> None:
    """Report the error of a thread; TensorBoard's writer hands its write errors to the next call, which reports them."""
    of_curves = isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")
    if not of_curves:
        _REPORT(args)
