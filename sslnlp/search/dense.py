"""Vectors on disk, searched exactly: one memory-mapped matrix, multiplied block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslnlp.errors import UserError
from sslnlp.search.encoder import Encoder
from sslnlp.search.ranking import EMPTY, Ranking, best

_ENCODE_BLOCK = 1024
_SEARCH_BLOCK = 16384
_QUERY_BLOCK = 256


def write_vectors(
    path: Path,
    texts: Iterable[str],
    count: int,
    encoder: Encoder,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode `count` texts into the array [count, D] at `path`, a block at a time; `progress` hears each block's size.

    float16 halves the file; a cosine moves by less than 1e-3. Raises UserError when the model yields a vector that is
    not finite (or does not fit the dtype), which would otherwise poison every ranking in silence.
    """
    vectors_ND = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(count, encoder.dimension))
    texts, start = iter(texts), 0
    while block := list(islice(texts, _ENCODE_BLOCK)):
        encoded_ND = encoder.encode(block, "document", batch_size=batch_size)
        if not np.isfinite(encoded_ND).all() or np.abs(encoded_ND).max() > np.finfo(dtype).max:
            raise UserError(f"{encoder.name} gives vectors that are not finite in {dtype}: it cannot be searched by.")
        vectors_ND[start : start + len(block)] = encoded_ND
        start += len(block)
        progress(len(block))
    vectors_ND.flush()


class DenseIndex:
    """Exact nearest neighbours by inner product (cosine when the encoder normalises)."""

    def __init__(self, path: Path) -> None:
        self.vectors_ND = np.load(path, mmap_mode="r")

    @property
    def dimension(self) -> int:
        return int(self.vectors_ND.shape[1])

    def search(self, queries_QD: NDArray[np.float32], k: int) -> list[Ranking]:
        """The `k` nearest documents of each query vector [Q, D].

        At most 16,384 vectors and 256 queries are in memory at once (about 40 MB at 384 dimensions), whatever the
        corpus holds; a block only adds what beats the k-th best so far.
        """
        if queries_QD.shape[1] != self.dimension:
            raise UserError(f"Query vectors have {queries_QD.shape[1]} dimensions, the index has {self.dimension}.")
        found: list[Ranking] = []
        for start in range(0, len(queries_QD), _QUERY_BLOCK):
            found.extend(self._search_block(queries_QD[start : start + _QUERY_BLOCK], k))
        return found

    def _search_block(self, queries_QD: NDArray[np.float32], k: int) -> Sequence[Ranking]:
        rankings = [EMPTY] * len(queries_QD)
        for start in range(0, len(self.vectors_ND), _SEARCH_BLOCK):
            block_ND = np.asarray(self.vectors_ND[start : start + _SEARCH_BLOCK], dtype=np.float32)
            for query, scores_N in enumerate(queries_QD @ block_ND.T):
                rankings[query] = _merge(rankings[query], scores_N, start, k)
        return rankings


def _merge(so_far: Ranking, scores_N: NDArray[np.float32], start: int, k: int) -> Ranking:
    full = len(so_far.rows) == k
    rows = np.flatnonzero(scores_N > so_far.scores[-1]) if full else np.arange(len(scores_N))
    # Earlier rows come first in the joined arrays, so equal scores stay in row order.
    return best(
        np.concatenate([so_far.scores, scores_N[rows]]), k, np.concatenate([so_far.rows, rows.astype(np.int64) + start])
    )
