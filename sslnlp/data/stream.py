"""The endless order of training: which row stands at position p is a pure function of (seed, p).

There are no epochs to save: position p is in lap `p // n`, and each lap is its own permutation of the n rows.
Resuming is starting at another position; workers and processes are any split of the positions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from sslnlp.arrays import Ints
from sslnlp.errors import UserError
from sslnlp.rng import Permutation
from sslnlp.types import Row

MEGA_BATCHES = 64
"""Batches sorted by length together in bucket mode: enough that rows of a batch differ little, still random."""


class RowSource(Protocol):
    """Rows by index. `rows(indices)` and, for buckets, `lengths` are used where they exist."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Row: ...


class Rows(Protocol):
    """Rows that are read many at a time: a table's, pictures, a `Stream`."""

    def __len__(self) -> int: ...

    def rows(self, indices: Sequence[int], /) -> list[Row]: ...


class ByIndex(ABC):
    """A source whose single rows are read as many are."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        """The rows at `indices`, in their order, read together."""

    def __getitem__(self, index: int) -> Row:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        return self.rows([index % len(self)])[0]


def rows_at(source: RowSource, index: Ints) -> list[Row]:
    """The rows at `index`, read together where the source can."""
    many: Any = getattr(source, "rows", None)
    found: list[Row] = many(index) if many is not None else [source[i] for i in index.tolist()]
    return found


def in_runs(rows: Rows, size: int = 1024) -> Iterator[list[Row]]:
    """All rows in their order, `size` at a time."""
    for start in range(0, len(rows), size):
        yield rows.rows(range(start, min(start + size, len(rows))))


class Stream:
    """Rows of `source` in an endless reproducible order; each stamped with its `position`.

    Also a map-style `torch` dataset: `__getitem__(p)` and `__getitems__([p, ...])`, so a `DataLoader` with any number
    of workers and a sampler of positions gives the same rows.

    Args:
        source: the rows; `len(stream)` is their number, one lap.
        seed: of the order.
        bucket: rows of a batch. Each run of `bucket` positions that begins at a multiple of it then holds rows of like
            length (sorted inside blocks of 64 batches, the batches shuffled). Needs `source.lengths`. Laps stay exact:
            a batch across the end of a lap takes the longest rows of both.

    Raises:
        UserError: when the source has no rows.
    """

    def __init__(self, source: RowSource, seed: int, *, bucket: int | None = None) -> None:
        if len(source) == 0:
            raise UserError("there are no rows to train on: every document is empty")
        if bucket is not None and (bucket < 1 or not hasattr(source, "lengths")):
            raise ValueError("bucket needs a positive number of rows and a source with lengths")
        self.source, self.seed, self.bucket = source, seed, bucket
        self.shuffled = True
        self._reset()

    @classmethod
    def fixed(cls, source: RowSource) -> Stream:
        """Held-out rows: their own order, every lap alike."""
        stream = cls(source, 0)
        stream.shuffled = False
        return stream

    def __len__(self) -> int:
        return len(self.source)

    def index(self, positions: Sequence[int] | Ints) -> Ints:
        """The index into `source` of each position: int64, same length."""
        p = np.asarray(positions, np.int64)
        if p.size and int(p.min()) < 0:
            raise IndexError(f"positions count from 0, got {int(p.min())}")
        if not self.shuffled:
            return p % len(self)
        if self.bucket is None:
            return self._permuted(p)
        size = self.bucket * MEGA_BATCHES
        out = np.empty_like(p)
        for block in np.unique(p // size).tolist():
            here = p // size == block
            out[here] = self._block(block)[p[here] - block * size]
        return out

    def rows(self, positions: Sequence[int]) -> list[Row]:
        """The rows at `positions`, stamped."""
        found = rows_at(self.source, self.index(positions))
        return [{**row, "position": int(p)} for row, p in zip(found, positions, strict=True)]

    def __getitem__(self, position: int) -> Row:
        return self.rows([position])[0]

    def __getitems__(self, positions: Sequence[int]) -> list[Row]:
        return self.rows(positions)

    def _permuted(self, p: Ints) -> Ints:
        lap, within = p // len(self), p % len(self)
        out = np.empty_like(p)
        for number in np.unique(lap).tolist():
            here = lap == number
            out[here] = self._lap(number)(within[here])
        return out

    def _bucketed(self, block: int) -> Ints:
        """Row indices of the 64 batches of one block, lap by lap so that every lap stays a permutation."""
        assert self.bucket is not None
        size, n, batch = self.bucket * MEGA_BATCHES, len(self), self.bucket
        lengths: npt.NDArray[Any] = self.source.lengths  # type: ignore[attr-defined]
        out = np.empty(size, np.int64)
        start, end = block * size, (block + 1) * size
        while start < end:
            stop = min(end, (start // n + 1) * n)
            rows = self._permuted(np.arange(start, stop))
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            if start % batch:  # begins inside a batch that the lap before filled with its longest rows
                rows = rows[::-1]
            head = min(-start % batch, stop - start)
            whole = (stop - start - head) // batch
            if whole > 1:
                order = Permutation(whole, self.seed, f"bucket{start}")(np.arange(whole))
                part = slice(head, head + whole * batch)
                rows[part] = rows[part].reshape(whole, batch)[order].reshape(-1).copy()
            out[start - block * size : stop - block * size] = rows
            start = stop
        return out

    def _reset(self) -> None:
        # Small caches of pure functions: a lap's permutation, and the sorted order of a block.
        self._lap = lru_cache(maxsize=4)(lambda lap: Permutation(len(self), self.seed, f"lap{lap}"))
        self._block = lru_cache(maxsize=4)(self._bucketed)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in {"_lap", "_block"}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._reset()
