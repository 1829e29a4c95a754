"""Which rows each update sees. A window is the rows of one optimiser step, over all processes and micro-batches."""

from __future__ import annotations

import atexit
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from sslnlp.errors import UserError
from sslnlp.signals import HEARD
from sslnlp.types import Batch, Row


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Rows of step t are positions [t × rows, (t + 1) × rows); micro-batch m of rank r is a contiguous part of them."""

    batch_size: int
    """Rows a forward pass, a process."""
    accumulate: int
    """Forward passes an update."""
    world: int = 1
    rank: int = 0

    @property
    def rows(self) -> int:
        """Rows an update."""
        return self.batch_size * self.accumulate * self.world

    def positions(self, step: int, micro: int) -> list[int]:
        """The positions of one micro-batch of this rank."""
        start = step * self.rows + (micro * self.world + self.rank) * self.batch_size
        return list(range(start, start + self.batch_size))

    @property
    def together(self) -> int:
        """Rows of one forward pass over all processes: those that a loss which compares rows sees at once."""
        return self.batch_size * self.world

    def fit(self, *, rows: int, together: int | None) -> Windows:
        """Windows of exactly `rows` rows (those of the run being resumed) on the processes there are now.

        Without `together` the micro-batch shrinks when it must and never grows: memory that sufficed before still does.
        With it (the loss compares rows) as many rows as before are compared at once.
        """
        if rows == self.rows and together in (None, self.together):
            return self
        share, odd = divmod(together or rows, self.world)
        if odd:
            raise UserError(
                f"this run takes {together or rows} rows together, which {self.world} processes cannot share evenly; "
                f"launch a number of processes that divides it"
            )
        if together is not None:
            return replace(self, batch_size=share, accumulate=rows // together)
        size = next(size for size in range(min(self.batch_size, share), 0, -1) if share % size == 0)
        return replace(self, batch_size=size, accumulate=share // size)


class _MicroBatches(Sampler[list[int]]):
    """Positions of this rank's micro-batches, in order, from step `start` to `stop`."""

    def __init__(self, windows: Windows, start: int, stop: int) -> None:
        self.windows, self.start, self.stop = windows, start, stop

    def __len__(self) -> int:
        return max(0, self.stop - self.start) * self.windows.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for step in range(self.start, self.stop):
            for micro in range(self.windows.accumulate):
                yield self.windows.positions(step, micro)


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ctrl-C and a scheduler's SIGTERM reach the whole process group; the loop still needs its last batches."""
    for signum in HEARD:
        signal.signal(signum, signal.SIG_IGN)


def iterate(
    stream: Any,
    collate: Callable[[Sequence[Row]], Batch],
    windows: Windows,
    *,
    start: int,
    stop: int,
    workers: int,
    pin_memory: bool = False,
) -> Iterator[tuple[int, list[Batch]]]:
    """(step, its micro-batches for this rank) for steps [start, stop). The number of workers changes nothing else.

    `stream` is a map-style dataset over positions (a `Stream`).
    """
    loader: DataLoader[Any] = DataLoader(
        stream,
        batch_sampler=_MicroBatches(windows, start, stop),
        collate_fn=collate,
        num_workers=workers,
        pin_memory=pin_memory,
        prefetch_factor=4 if workers else None,
        worker_init_fn=_leave_signals_to_the_loop,
        generator=torch.Generator(),  # else it draws seeds of workers, which nothing reads, from the caller's
    )
    batches: Any = iter(loader)
    if workers:  # an error that nobody catches keeps `batches`, and Python would wait for workers deaf to its SIGTERM
        atexit.register(batches._shutdown_workers)
    try:
        for step in range(start, stop):
            yield step, [next(batches) for _ in range(windows.accumulate)]
    finally:
        if workers:
            atexit.unregister(batches._shutdown_workers)
