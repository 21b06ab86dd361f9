"""Launches, other dispatched operations, and waits of the host with the line of the program that causes them."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TESTS = f"{ROOT}/tests/"

waits: Counter[tuple[str, str]] = Counter()  # since the start of the process, by kind and line
kernels = lambda: 0  # noqa: E731  the library's, once it is loaded


@dataclass
class Counts:
    """What a part of a program costs the host on a card.

    Attributes:
        kernels: launches, copies among them; fused attention is one.
        others: other operations that PyTorch dispatches and the host pays for: views and allocations.
        operations: all dispatched operations by name.
        waits: of the host for the card, by kind and line of the program.
    """

    kernels: int = 0
    others: int = 0
    operations: Counter[str] = field(default_factory=Counter)
    waits: Counter[tuple[str, str]] = field(default_factory=Counter)


def host_waits(kind: str) -> None:
    """Note that the host waits for the card."""
    waits[kind, _line()] += 1


def _line() -> str:
    """Return the innermost line of the project that runs, of its tests only if there is no other."""
    frame, of_tests = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(f"{ROOT}/") and "/simulated_card/" not in file and "/.venv/" not in file:
            line = f"{file[len(str(ROOT)) + 1 :]}:{frame.f_lineno}"
            if not file.startswith(TESTS):
                return line
            of_tests = of_tests or line
        frame = frame.f_back
    return of_tests or "outside"


@contextmanager
def counted() -> Iterator[Counts]:
    """Count what runs inside; the counts are complete at its end."""
    from torch.utils._python_dispatch import TorchDispatchMode

    found = Counts()

    class Operations(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            found.operations[str(func)] += 1
            found.others += _is_no_launch(func)
            return func(*args, **(kwargs or {}))

    before, first = Counter(waits), kernels()
    with Operations():
        yield found
    found.kernels, found.waits = kernels() - first, waits - before


def _is_no_launch(func: Any) -> bool:
    """Whether an operation gives views or memory without content."""
    returns = func._schema.returns
    views = bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)
    return views or func._schema.name.startswith(("aten::empty", "aten::new_empty", "aten::resize_", "aten::set_"))
