"""One run on several processes, started by `torchrun`: who am I, and the few things that the ranks tell each other.

Everything here does the obvious for a single process, so that callers need not ask. The learned parameters are tiny: a step
exchanges one vector, the sum of their gradients.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # rank 0 may download weights, or encode a vocabulary, while the others wait


class RankLostError(OSError):
    """Another process of the job has ended or does not answer."""


def launched() -> bool:
    """Whether `torchrun`, or what sets the same environment variables, has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(use_cuda: bool) -> None:
    """Join the other processes of the job; nothing happens in a job of one, or the second time."""
    if not launched() or dist.is_initialized():
        return
    cuda = use_cuda and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cuda:nccl,cpu:gloo" if cuda else "gloo", timeout=TIMEOUT)
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process lives


def stop() -> None:
    """Leave the job."""
    if dist.is_initialized():
        with contextlib.suppress(RuntimeError):  # the others may have gone
            dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


def share(count: int, of: int | None = None) -> slice:
    """Return which of `count` things in a row are those of a rank, this one by default; shares differ by at most one."""
    of = rank() if of is None else of
    n = world()
    return slice(count * of // n, count * (of + 1) // n)


def _named(call: Callable) -> Callable:
    """Have a failure of the connection tell what it means."""

    @wraps(call)
    def named(*args: Any, **kwargs: Any) -> Any:
        try:
            return call(*args, **kwargs)
        except RuntimeError as error:
            raise RankLostError(
                f"Another process of the job ended or does not answer (this is rank {rank()} of {world()}). Look for its "
                f"error; the same command again goes on from the last saved state. ({str(error).splitlines()[0]})"
            ) from error

    return named


@_named
def barrier() -> None:
    """Wait for the others."""
    if world() > 1:
        dist.barrier()


@_named
def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return bool(total(torch.tensor(float(flag)))) if world() > 1 else flag


@_named
def from_main(value: Any) -> Any:
    """Return rank 0's value of an object."""
    if world() > 1:
        box = [value]
        dist.broadcast_object_list(box)
        return box[0]
    return value


@_named
def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Put the sum over the ranks in place of each parameter's gradient, in one exchange for all."""
    if world() == 1:
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)


@_named
def same_as_main(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Put rank 0's values in place of all ranks'."""
    if world() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


@_named
def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Return the rows `(counts[r], ...)` of all ranks behind each other, `(sum(counts), ...)`; no gradient flows."""
    if world() == 1:
        return rows
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded.contiguous())
    return torch.cat([part[:n] for part, n in zip(gathered, counts, strict=True)])


class _GatherWithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: Tensor, counts: list[int]) -> Tensor:
        ctx.own = slice(sum(counts[: rank()]), sum(counts[: rank() + 1]))
        return gather_rows(rows, counts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return total(gradient)[ctx.own], None  # every rank's loss depends on these rows


def gather_with_gradient(rows: Tensor, counts: list[int]) -> Tensor:
    """Return the same as `gather_rows`; the gradient of a rank's rows is the sum over all ranks' losses."""
    return _GatherWithGradient.apply(rows, counts) if world() > 1 else rows
