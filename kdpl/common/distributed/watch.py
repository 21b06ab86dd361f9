"""Watching the other processes of a job of several: a launcher that died, and a rank that has stopped, end this one.

Without it a rank waits in a collective operation until its time-out, half an hour, and keeps the output folder locked.
"""

import atexit
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from kdpl.common.environment import PARENT
from kdpl.common.exits import FAILED

EVERY_S = 2.0
SILENCE_S = float(os.environ.get("KDPL_RANK_TIMEOUT") or 120)  # after which a rank counts as stopped

_leaving = threading.Event()  # this process is about to end


def in_thread(watch: Callable[[], None]) -> None:
    """Watch from now on, in a thread: `parent` at once, `ranks` when the process group has been made."""
    thread = threading.Thread(target=watch, name=f"watch {watch.__name__}", daemon=True)
    thread.start()
    atexit.register(_stop, thread)


def _stop(thread: threading.Thread) -> None:
    """End a thread before Python ends: to be killed inside PyTorch's store would abort the process."""
    _leaving.set()
    thread.join(timeout=2 * EVERY_S)


def parent() -> None:
    """End the process once its launcher, `torchrun` say, has ended."""
    while _parent_lives():
        if _leaving.wait(EVERY_S):
            return
    _end("The launcher of this process (torchrun) has ended")


def ranks() -> None:
    """End the process once another rank has stopped."""
    try:
        rank, world = dist.get_rank(), dist.get_world_size()
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=60))
        seen: dict[int, tuple[str, float]] = {}
        names = {other: f"kdpl/alive/{other}" for other in range(world) if other != rank}
        count = 0
        while True:
            count += 1
            store.set(f"kdpl/alive/{rank}", json.dumps([count, socket.gethostname(), os.getpid()]))
            for other, name in names.items():
                value = store.get(name).decode() if store.check([name]) else ""
                if seen.get(other, ("", 0.0))[0] != value or other not in seen:
                    seen[other] = value, time.monotonic()
                elif time.monotonic() - seen[other][1] > SILENCE_S:
                    where = "{1}, process {2}".format(*json.loads(value)) if value else "not started"
                    _end(f"Rank {other} of {world} ({where}) has not answered for {SILENCE_S:.0f} s: it is stopped or hangs")
            if _leaving.wait(EVERY_S):
                return
    except (RuntimeError, ValueError, KeyError, OSError):  # the store has gone, and its host with it: the job ends
        return


def _parent_lives() -> bool:
    if os.getppid() != PARENT:
        return False
    if PARENT != 1:
        return True
    try:  # the process was adopted by process 1 before it could look, unless that is the launcher
        return b"torch" in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return True


def _end(why: str) -> None:
    print(f"error: {why}. The same command resumes from the last saved state.", file=sys.stderr, flush=True)
    os._exit(FAILED)
