"""A sweep on this machine: so many runs at once, as processes."""

import os
import queue
import signal
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import timedelta

from kdpl.experiments.sweep.plan import Run, Sweep
from kdpl.experiments.sweep.work import Outcome, Stop, environment, state_of, work, write_record

STOPPING = tuple(getattr(signal, n) for n in ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, n))


def gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return [name for name in visible.split(",") if name] if visible else [str(i) for i in range(torch.cuda.device_count())]


def run_local(sweep: Sweep, runs: list[Run], jobs: int) -> list[str]:
    """Do the runs, `jobs` at once; return the state in which each ended.

    Args:
        jobs: 0: one for each GPU, or one. More than there are GPUs share them.
    """
    devices = gpus() if sweep.executor.gpus else []
    jobs = jobs or len(devices) or 1
    threads = max(1, (os.cpu_count() or 1) // jobs)
    slots: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    for i in range(jobs):
        slots.put(devices[i % len(devices)] if devices else None)
    stop = Stop()

    def do(run: Run) -> tuple[Outcome, float]:
        began, gpu = time.monotonic(), slots.get()
        try:
            if stop.signal is None:
                write_record(sweep, run, "running")
            outcome = work(run, stop, environment(threads, gpu), sweep.executor.restarts)
            write_record(sweep, run, state_of(outcome), outcome.reason)
        finally:
            slots.put(gpu)
        return outcome, time.monotonic() - began

    def take(number: int, frame) -> None:
        if stop.signal is None:
            print("stopping: runs save what they have; the same command goes on from here", flush=True)
        stop.take(number, frame)

    previous = {number: signal.signal(number, take) for number in STOPPING}
    states = []
    try:
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(do, run): run for run in runs}
            for n, future in enumerate(as_completed(futures), 1):
                outcome, seconds = future.result()
                states.append(state_of(outcome))
                took = timedelta(seconds=round(seconds))
                print(f"[{n}/{len(runs)}] {futures[future].label}: {states[-1]} after {took}", flush=True)
                if outcome.status:
                    print(f"    {outcome.reason}", flush=True)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return states
