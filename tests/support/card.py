"""The simulated card (tests/simulated_card) for tests: whether this machine can have one."""

import sys

import pytest
import torch
from simulated_card.build import NoCompilerError, compiler


def _missing() -> str:
    """Return why there can be no simulated card here; empty: there can."""
    if sys.platform != "linux":
        return "the simulated card is built on Linux"
    if torch.backends.cuda.is_built():
        return "this PyTorch is built for real cards"
    try:
        compiler()
    except NoCompilerError as error:
        return f"no simulated card: {error}"
    return ""


needs_simulated_card = pytest.mark.skipif(bool(_missing()), reason=_missing())
