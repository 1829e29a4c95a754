"""Few-label draws: which k rows of each class a small training set has, by hash, so that anyone draws the same."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import TypeVar

from sslnlp.errors import UserError

T = TypeVar("T")


def draw(labels: Sequence[Hashable], k: int, seed: int) -> list[int]:
    """The k rows of each class with the smallest sha256("seed:row"), row = 0-based index; ascending.

    Few-label results swing with the draw, so report several seeds. A class with fewer than k rows gives all it has.
    """
    if k < 1:
        raise UserError(f"a few-label draw needs at least 1 label a class, got {k}")
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, label in enumerate(labels):
        rows[label].append(row)

    def order(row: int) -> bytes:
        return hashlib.sha256(f"{seed}:{row}".encode()).digest()

    return sorted(row for members in rows.values() for row in sorted(members, key=order)[:k])


def subset(rows: Sequence[T], labels: Sequence[Hashable], k: int, seed: int) -> list[T]:
    """The rows that `draw` picks. `labels` are those of `rows`, in the same order."""
    if len(rows) != len(labels):
        raise UserError(f"{len(rows)} rows but {len(labels)} labels; a few-label draw needs one label a row")
    return [rows[i] for i in draw(labels, k, seed)]
