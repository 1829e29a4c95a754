"""The best k of many scores, exactly, with ties settled the same way every time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslnlp.arrays import Ints


class Ranking(NamedTuple):
    """The best documents of one query: `rows` int64 [k] (places in the index) by falling `scores` [k]."""

    rows: Ints
    scores: NDArray[np.floating[Any]]


EMPTY = Ranking(np.zeros(0, np.int64), np.zeros(0, np.float32))


def best(scores: NDArray[np.floating[Any]], k: int, rows: Ints | None = None) -> Ranking:
    """The `k` highest of `scores` [N], highest first; equal scores keep the order they came in.

    `rows` [N] are the documents the scores belong to (default 0..N-1). A partition finds the k-th score in linear
    time, and everything equal to it stays a candidate, so which of two equal documents is cut never depends on luck.
    """
    if 0 < k < len(scores):
        candidates = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    else:
        candidates = np.arange(len(scores))
    order = candidates[np.argsort(-scores[candidates], kind="stable")][:k]
    return Ranking(order if rows is None else rows[order], scores[order])
