"""Ranks, sums and gathers over processes. On a single process everything here is the identity.

Only this file and `sharding` say `torch.distributed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from sslnlp.errors import UserError

T = TypeVar("T")

MEETING = timedelta(minutes=5)
"""How long processes that were launched together may take to find each other's addresses."""
PATIENCE = timedelta(days=30)
"""How long they wait for one that works alone, as on a large corpus. What they train through gives up after 10 minutes
(NCCL) or 30 (gloo), which is right for an update and too short for a measure."""

_alone = False
_patient: dist.ProcessGroup | None = None


def world_size() -> int:
    """Processes that train together (1 when none were launched, and inside `alone`)."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


def rank() -> int:
    """This process's number, from 0 (0 inside `alone`)."""
    return dist.get_rank() if world_size() > 1 else 0


def own_device() -> torch.device:
    """Where a process by itself computes: a GPU, unless there is none or ACCELERATE_USE_CPU says not to, as in
    training."""
    from accelerate.utils import parse_flag_from_env

    use = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return torch.device("cuda" if use else "cpu")


def trains_on_cpu() -> bool:
    """Whether training is on the CPU: there is no GPU, ACCELERATE_USE_CPU says so, or it is one of Apple's (MPS), which
    have no float64, in which means over targets are summed."""
    from accelerate.utils import parse_flag_from_env

    gpu = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return gpu is None or gpu.type == "mps" or bool(parse_flag_from_env("ACCELERATE_USE_CPU"))


def own_cores() -> int:
    """The cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def leave() -> None:
    """Take leave of the other processes, at the end of this one. Left to the interpreter, gloo's threads may be alive
    when it ends, and it aborts: the launcher then reports a finished run as failed."""
    global _patient
    _patient = None
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process acts as if it were the only one: held-out text is scored whole by every rank."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def wait() -> None:
    """Until all processes are here, however long one of them works alone; nothing inside `alone`.

    Raises `RuntimeError` where one of them has ended, and `UserError` where they cannot reach each other.
    """
    if world_size() > 1:
        dist.barrier(_patient_group())


@contextmanager
def main_first() -> Iterator[None]:
    """Rank 0 goes through the body before the others do, and all leave it together, however long it takes each."""
    if world_size() > 1:
        _patient_group()  # made while all are here
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()
    wait()


def _patient_group() -> dist.ProcessGroup:
    """All processes, through gloo also where they train through NCCL: it has no watchdog, keeps no GPU busy, and hears
    at once of a process that has ended. All call it together, as it is made in the first call."""
    global _patient
    if _patient is None:
        try:
            group = dist.new_group(backend="gloo", timeout=MEETING)
        except RuntimeError as error:
            raise UserError(
                f"the processes cannot reach each other through gloo ({error}): name the network interface between the "
                "machines in the environment as GLOO_SOCKET_IFNAME"
            ) from error
        dist.distributed_c10d._set_pg_timeout(PATIENCE, group)
        _patient = group
    return _patient


def all_reduce_sum(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, in place; no gradient."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def all_reduce_max(x: Tensor) -> Tensor:
    """The largest `x` over ranks, in place; no gradient."""
    if world_size() > 1:
        dist.all_reduce(x, op=dist.ReduceOp.MAX)
    return x


def broadcast_number(value: float) -> float:
    """Rank 0's value, on every rank."""
    return _of_main(value)


def by_main(find: Callable[[], T]) -> T:
    """What rank 0 finds, alone, on every rank, however long it takes. Found by each, it could differ in its last digit
    from machine to machine, and on a GPU from one time to the next."""
    found: Any = None
    if rank() == 0:
        with alone():
            found = find()
    wait()
    return cast(T, _of_main(found))


def _of_main(value: T) -> T:
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def _together(x: Tensor) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(world_size())]
    dist.all_gather(parts, x.contiguous())
    return torch.cat(parts)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.rows = x.shape[0]
        return _together(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        # Every rank's loss used this rank's rows, so the gradients of all ranks add up before the slice is taken.
        (grad,) = grad_outputs
        total = all_reduce_sum(grad.contiguous().clone())
        start = rank() * ctx.rows
        return total[start : start + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """`x` [B, ...] of all ranks, in rank order: [world × B, ...]. The gradient flows back to the rank that owns a row.

    Every rank must bring the same B. With the loss of each rank's own rows against the gathered ones, and gradients
    averaged over ranks, the update equals that of one process holding all rows.
    """
    if world_size() == 1:
        return x
    if not x.is_floating_point():
        return _together(x)
    gathered: Tensor = _Gather.apply(x)  # type: ignore[no-untyped-call]
    return gathered


def own_rows(x: Tensor) -> Tensor:
    """int64 [B]: where this rank's rows `x` [B, ...] stand in what `gather` makes of those of all ranks."""
    return rank() * len(x) + torch.arange(len(x), device=x.device)


def gather_ragged(x: Tensor) -> tuple[Tensor, int]:
    """`gather` for ranks with unlike numbers of rows [N, ...]: [sum of all N, ...], and where this rank's begin."""
    if world_size() == 1:
        return x, 0
    counts = gather(torch.tensor([len(x)], device=x.device)).tolist()
    padded = torch.cat([x, x.new_zeros(max(counts) - len(x), *x.shape[1:])])
    parts = gather(padded).view(len(counts), max(counts), *x.shape[1:]) if max(counts) else [x] * len(counts)
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)]), sum(counts[: rank()])


# --- tensors cut over processes (FSDP2) ------------------------------------------------------------------------------


def whole(x: Tensor) -> Tensor:
    """A tensor that is cut over the ranks (a `DTensor`), put together on each of them; any other as it is.

    All ranks call it, in step.
    """
    full: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return full


def cut_like(full: Tensor, like: Tensor) -> Tensor:
    """This rank's part of `full`, cut as `like` is, in its dtype and on its device; `full` where `like` is whole.

    Every rank holds the same `full`, so nothing is sent.
    """
    if not hasattr(like, "full_tensor"):
        return full
    from torch.distributed.tensor import distribute_tensor

    placed: Any = like
    here = full.to(like.device, like.dtype)
    return distribute_tensor(here, placed.device_mesh, placed.placements, src_data_rank=None)


def clip_gradients(module: torch.nn.Module, most: float) -> Tensor:
    """Scale the gradients of `module`, in place, to a norm of at most `most` over all parameters; the norm before."""
    params = [p for p in module.parameters() if p.grad is not None]
    norm = whole(torch.nn.utils.get_total_norm([p.grad for p in params if p.grad is not None]))
    torch.nn.utils.clip_grads_with_norm_(params, most, norm)
    return norm
