"""Parts of error messages: the closest valid name, a value and another library's error in short."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(value: object, names: Iterable[str], cutoff: float = 0.4) -> str:
    """Return " Did you mean 'X'?" with the name closest to `value`, regardless of case; empty if none is close."""
    by_folded_name = {name.casefold(): name for name in names}
    closest = get_close_matches(str(value).casefold(), by_folded_name, n=1, cutoff=cutoff)
    return f" Did you mean '{by_folded_name[closest[0]]}'?" if closest else ""


def short_reason(error: BaseException) -> str:
    """Return the type and the first line (at most 200 characters) of an error raised inside a library."""
    lines = str(error).splitlines()
    return f"{type(error).__name__}: {lines[0][:200]}" if lines else type(error).__name__


def signed(value: float, digits: int) -> str:
    """Return a difference with its sign; what rounds to zero is +0, whatever its sign was."""
    return f"{round(value, digits) + 0.0:+.{digits}f}"


def shorten(value: object) -> str:
    """Return a value from a file as Python writes it, cut to about a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
