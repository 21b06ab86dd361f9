"""Several processes on this machine, started by the real torchrun."""

import os
import socket
import sys


def environment() -> dict[str, str]:
    """Return an environment in which several ranks share few cores."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def torchrun(ranks: int, *command: object) -> list[str]:
    """Return the command line that starts a Python file with its arguments on so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", ranks, "--master-port", free_port()]
    return [sys.executable, *map(str, (*launcher, *command))]
