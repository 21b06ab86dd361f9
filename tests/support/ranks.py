"""Several processes on this machine: started by the real torchrun, or forked in a moment with the variables that it sets."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile

from support import processes


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


@contextlib.contextmanager
def start_ranks(ranks: int, *command: object, **options):
    """Yield the processes of a Python file, or of `-m` and a module, on so many ranks; none of them is left behind."""
    shared = {**environment(), "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, *map(str, command)]
    started = []
    try:
        for rank in map(str, range(ranks)):
            started.append(processes.Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}, **options))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def run_ranks(ranks: int, *command: object, **options) -> subprocess.CompletedProcess:
    """Run a Python file, or `-m` and a module, on so many ranks; return what all printed, and the worst exit code.

    A rank that fails makes the others fail, without torchrun to end them.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with start_ranks(ranks, *command, stdout=out, stderr=err, **options) as started:
            codes = [process.wait(300) for process in started]
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(started[0].args, max(codes, key=abs), out.read(), err.read())
