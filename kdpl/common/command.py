"""The entry of a command: its output is escaped, a signal ends it in one line, and an unexpected error in a traceback."""

import sys
import traceback
from collections.abc import Callable, Iterable
from typing import IO, Any

from kdpl.common import exits
from kdpl.common.safe_text import printable
from kdpl.common.signals import Interrupted, end_if_stopped, handled_signals


class _PrintableStream:
    """A text stream that writes what `printable` returns; in all else it is the stream that it is made from."""

    def __init__(self, stream: IO[str]):
        self._stream = stream
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # names and paths that the terminal cannot show

    def write(self, text: str) -> int:
        return self._stream.write(printable(text))

    def writelines(self, texts: Iterable[str]) -> None:
        for text in texts:
            self.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def escape_streams() -> None:
    """Escape control characters, and what the console cannot encode, in all that is printed from now on."""
    if not isinstance(sys.stdout, _PrintableStream):  # an engine's logger may have taken its place
        sys.stdout = _PrintableStream(sys.stdout)
    if not isinstance(sys.stderr, _PrintableStream):
        sys.stderr = _PrintableStream(sys.stderr)


def run_command(main: Callable[[], int]) -> int:
    """Return the exit status of a command, all of whose output is escaped, the traceback of an unexpected error too."""
    streams = sys.stdout, sys.stderr
    escape_streams()
    try:
        with handled_signals():
            status = main()
            if status:
                end_if_stopped()  # a library may have made another error of a signal
            return status
    except Interrupted as stop:
        if not stop.printed:
            print(stop, file=sys.stderr, flush=True)
        return exits.INTERRUPTED
    except Exception:
        traceback.print_exc()
        return exits.FAILED
    finally:
        sys.stdout, sys.stderr = streams
