"""A simulated CUDA card: a program runs as if a GPU were there, on a machine that has none, and CUDA's rules are held.

Tensors are on cuda:0 and their bytes in the CPU's memory, so autograd, autocast, GradScaler, checkpoints and pinned memory take
the paths of a card. As on a card these fail: a CPU tensor that meets one of the card (single numbers in pointwise operations
aside), numpy of a tensor of the card, a generator of the other device, products of integers, layer normalisation of mixed
types, algorithms that are not deterministic if they must be. Launches are counted, and waits of the host with their lines.

It cannot see: races of asynchronous work, the card's memory filling up, the numerics of cuBLAS and cuDNN, TF32, the numerics of
fused attention, a second card, NCCL, a random generator of the card's own, and times.

    import simulated_card; simulated_card.install()      in a process that has not imported PyTorch yet
    scripts/simulated_card.sh --program train.py ...     a whole program, with all Python processes that it starts

Give SIMULATED_CARD_REPORT=FILE, and each process appends its waits to the file at its end.
"""

import atexit
import ctypes
import os
import sys
from pathlib import Path

from simulated_card import build, counts
from simulated_card.build import NoCompilerError
from simulated_card.counts import Counts, counted, waits

SITE = Path(__file__).resolve().parent / "site"  # on PYTHONPATH it gives a card to every Python that starts
_alive: list = []  # the library, and the function that it calls


def load() -> None:
    """Build and load the library, before PyTorch asks whether there is a card.

    Raises:
        RuntimeError: PyTorch is imported already.
        NoCompilerError, subprocess.CalledProcessError: the library cannot be built.
    """
    if "torch" in sys.modules:
        raise RuntimeError("PyTorch is imported already: install the simulated card before.")
    library = ctypes.CDLL(str(build.library()))
    library.card_kernels.restype = ctypes.c_long
    note = ctypes.CFUNCTYPE(None, ctypes.c_char_p)(lambda kind: counts.host_waits(kind.decode()))
    library.card_on_wait(note)
    counts.kernels = library.card_kernels
    _alive.extend((library, note))


def install() -> None:
    """Load the card, import PyTorch, and replace what torch.cuda asks; see `load`. With SITE, importing PyTorch does so."""
    if Path(getattr(sys.modules.get("sitecustomize"), "__file__", "")).parent == SITE:
        return
    load()
    finish()


def finish() -> None:
    """Replace what torch.cuda asks, after `load` and the import of PyTorch."""
    from simulated_card import cuda

    cuda.install()
    if report := os.environ.get("SIMULATED_CARD_REPORT"):
        pid = os.getpid()
        atexit.register(lambda: os.getpid() == pid and _append(report))


def _append(report: str) -> None:
    lines = [f"## {' '.join(sys.argv)[:200]}: {counts.kernels()} kernels"]
    lines += [f"{n:6d}  {kind}  {line}" for (kind, line), n in waits.most_common()]
    with open(report, "a", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


__all__ = ["SITE", "Counts", "NoCompilerError", "counted", "finish", "install", "load", "waits"]
