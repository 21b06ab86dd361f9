"""One run on several processes, started by `torchrun`: rank, world size and the collectives a run needs.

With a single process every function is a no-op or returns its input, so callers need no special case. The learned parameters
are tiny: a step exchanges one vector, the sum of their gradients.
"""

import os
import sys
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

TIMEOUT = timedelta(minutes=30)  # rank 0 may download weights, or encode a vocabulary, while the others wait


def launched() -> bool:
    """Whether `torchrun`, or a launcher that sets the same variables, started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def start(use_cuda: bool) -> None:
    """Join the other processes of the job; a no-op with one process, or when called again."""
    if not launched() or dist.is_initialized():
        return
    cards = torch.cuda.device_count() if use_cuda and torch.cuda.is_available() else 0
    if cards:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % cards)
    dist.init_process_group(_backend(cards), timeout=TIMEOUT)
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  for as long as the process lives


def _backend(cards: int) -> str:
    """Return what the ranks exchange tensors through; NCCL refuses several ranks on one GPU, gloo does not."""
    local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    return "cuda:nccl,cpu:gloo" if local_ranks <= cards else "gloo"


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this is rank 0, the process that writes files and prints."""
    return rank() == 0


def share(count: int) -> slice:
    """Return the slice of `count` items that this rank works on; the ranks' lengths differ by at most one."""
    return slice(count * rank() // world(), count * (rank() + 1) // world())


def share_lengths(count: int) -> list[int]:
    """Return of how many of `count` items each rank works on."""
    n = world()
    return [count * (r + 1) // n - count * r // n for r in range(n)]


def barrier() -> None:
    """Wait for all ranks."""
    if world() > 1:
        dist.barrier()


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over the ranks."""
    if world() > 1:
        values = values.clone()
        dist.all_reduce(values)
    return values


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    return bool(total(torch.tensor(float(flag)))) if world() > 1 else flag


def from_main(value: Any) -> Any:
    """Return rank 0's value of an object."""
    box = [value]
    if world() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def sum_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Replace each parameter's gradient by its sum over the ranks, in one all-reduce."""
    if world() == 1:
        return
    parameters = list(parameters)
    flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])
    dist.all_reduce(flat)
    for parameter, gradient in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
        parameter.grad = gradient.view_as(parameter)


def same_as_main(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Broadcast rank 0's values to all ranks, in place."""
    if world() > 1:
        for parameter in parameters:
            dist.broadcast(parameter.data, 0)


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows `(counts[r], ...)` of all ranks, `(sum(counts), ...)`; no gradient flows."""
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
        ctx.counts = counts
        return gather_rows(rows, counts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return total(gradient).split(ctx.counts)[rank()], None  # every rank's loss depends on these rows


def gather_with_gradient(rows: Tensor, counts: list[int]) -> Tensor:
    """Gather as `gather_rows`; the gradient of a rank's rows is summed over all ranks' losses."""
    return _GatherWithGradient.apply(rows, counts) if world() > 1 else rows
