"""Watching the other processes of a job of several: a launcher that died, and a rank that has stopped, end this one.

Without it a rank waits in a collective operation until its time-out, half an hour, and keeps the output folder locked.
"""

import json
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from kdpl.common.environment import PARENT
from kdpl.common.exits import FAILED

EVERY_S = 2.0
SILENCE_S = float(os.environ.get("KDPL_RANK_TIMEOUT") or 120)  # after which a rank counts as stopped


class Watch:
    """Two threads that end the process when it has been left alone."""

    def parent(self) -> None:
        """Watch the launcher, `torchrun` say, from now on."""
        threading.Thread(target=self._watch_parent, name="watch parent", daemon=True).start()

    def ranks(self) -> None:
        """Watch the other ranks from now on; the process group has been made."""
        args = dist.get_rank(), dist.get_world_size()
        threading.Thread(target=self._watch_ranks, args=args, name="watch ranks", daemon=True).start()

    def _watch_parent(self) -> None:
        while _parent_lives():
            time.sleep(EVERY_S)
        _end("The launcher of this process (torchrun) has ended")

    def _watch_ranks(self, rank: int, world: int) -> None:
        try:
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
                        _end(
                            f"Rank {other} of {world} ({where}) has not answered for {SILENCE_S:.0f} s: it is stopped or hangs"
                        )
                time.sleep(EVERY_S)
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
