"""Rows of several tables as one source: labelled ones, and others that were given labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sslnlp.arrays import Ints
from sslnlp.data.stream import ByIndex, RowSource, rows_at
from sslnlp.types import Row


class JoinedRows(ByIndex):
    """The rows of `parts`, one source behind the other; those of a part with `labels` carry these instead of theirs."""

    def __init__(self, *parts: tuple[RowSource, Ints | None]) -> None:
        self._parts = parts
        self._starts = np.cumsum([0, *(len(source) for source, _ in parts)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def rows(self, indices: Sequence[int] | Ints) -> list[Row]:
        where = np.asarray(indices, np.int64)
        part_N = np.searchsorted(self._starts, where, side="right") - 1
        found: list[Any] = [None] * len(where)
        for number, (source, labels) in enumerate(self._parts):
            places = np.flatnonzero(part_N == number)
            inside = where[places] - self._starts[number]
            rows = rows_at(source, inside)
            for place, index, row in zip(places.tolist(), inside.tolist(), rows, strict=True):
                found[place] = row if labels is None else {**row, "label": int(labels[index])}
        return found
