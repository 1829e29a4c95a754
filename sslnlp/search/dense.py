"""Vectors on disk, searched exactly: one memory-mapped matrix, multiplied block by block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sslnlp.arrays import Bools, Ints
from sslnlp.errors import UserError
from sslnlp.search.ranking import EMPTY, Ranking, best

if TYPE_CHECKING:
    from sslnlp.search.dual import DualEncoder
    from sslnlp.search.encoder import Encoder

_ENCODE_BLOCK = 1024
_SEARCH_BLOCK = 4096  # as float32 2 MB at 128 dimensions: what is converted is still in the cache when multiplied
_QUERY_BLOCK = 256


def write_vectors(
    path: Path,
    contents: Iterable[Any],
    count: int,
    encoder: Encoder | DualEncoder,
    *,
    dtype: str = "float16",
    batch_size: int = 32,
    block: int | None = None,
    start: int = 0,
    flushed: Callable[[int], None] = lambda done: None,
) -> None:
    """Encode the contents of `count` documents into the array [count, D] at `path`, `block` (1,024) at a time.

    After each block `flushed` hears how many vectors are on disk; a later call with that `start` (and the contents from
    there on) goes on from there. float16 halves the file; a cosine moves by less than 1e-3. Raises UserError when the
    model yields a vector that is not finite (or does not fit the dtype), which would poison every ranking in silence.
    """
    if start:
        vectors_ND = np.lib.format.open_memmap(path, mode="r+")
    else:
        vectors_ND = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(count, encoder.dimension))
    contents = iter(contents)
    while some := list(islice(contents, block or _ENCODE_BLOCK)):
        encoded_ND = encoder.encode(some, "document", batch_size=batch_size)
        if not np.isfinite(encoded_ND).all() or np.abs(encoded_ND).max() > np.finfo(dtype).max:
            raise UserError(f"{encoder.name} gives vectors that are not finite in {dtype}: it cannot be searched by")
        vectors_ND[start : start + len(some)] = encoded_ND
        start += len(some)
        vectors_ND.flush()
        flushed(start)


def copy_vectors(path: Path, parts: Sequence[NDArray[np.floating[Any]]], live: Sequence[Bools]) -> None:
    """Write the `live` rows of several vector arrays as one array at `path`, a block at a time."""
    count = sum(int(alive_N.sum()) for alive_N in live)
    out_ND = np.lib.format.open_memmap(path, mode="w+", dtype=parts[0].dtype, shape=(count, parts[0].shape[1]))
    at = 0
    for part_ND, alive_N in zip(parts, live, strict=True):
        for start in range(0, len(part_ND), _SEARCH_BLOCK):
            block_ND = part_ND[start : start + _SEARCH_BLOCK][alive_N[start : start + _SEARCH_BLOCK]]
            out_ND[at : at + len(block_ND)] = block_ND
            at += len(block_ND)
    out_ND.flush()


class DenseIndex:
    """Exact nearest neighbours by inner product (cosine when the encoder normalises) over the arrays at `paths`, joined
    end to end. The rows in `deleted` are never found. Raises UserError when the arrays differ in dimension."""

    def __init__(self, paths: Sequence[Path], deleted: Iterable[int] = ()) -> None:
        self.parts = [np.load(path, mmap_mode="r") for path in paths]
        if len({part_ND.shape[1] for part_ND in self.parts}) > 1:
            raise UserError(f"the index at {paths[0].parent.parent} mixes dimensions: make it again")
        self.alive_N = np.ones(sum(map(len, self.parts)), bool)
        self.alive_N[list(deleted)] = False

    @property
    def dimension(self) -> int:
        return int(self.parts[0].shape[1])

    @property
    def vectors_ND(self) -> NDArray[np.floating[Any]]:  # noqa: N802 (an array)
        """All vectors by row, the deleted ones too: mapped where there is one segment, else put together in memory."""
        return self.parts[0] if len(self.parts) == 1 else np.concatenate(self.parts)

    def search(self, queries_QD: NDArray[np.float32], k: int) -> list[Ranking]:
        """The `k` nearest documents of each query vector [Q, D].

        At most 4,096 vectors and 256 queries are in memory at once (about 10 MB at 384 dimensions), whatever the corpus
        holds; a block only adds what beats the k-th best so far.
        """
        self.check(queries_QD)
        found: list[Ranking] = []
        for start in range(0, len(queries_QD), _QUERY_BLOCK):
            found.extend(self._search_block(queries_QD[start : start + _QUERY_BLOCK], k))
        return found

    def check(self, queries_QD: NDArray[np.float32]) -> None:
        """Raises UserError for query vectors of another length than the documents'."""
        if queries_QD.shape[1] != self.dimension:
            raise UserError(f"query vectors have {queries_QD.shape[1]} dimensions, the index has {self.dimension}")

    def scores(self, query_D: NDArray[np.float32], rows: Ints) -> NDArray[np.float32]:
        """float32 [len(rows)]: how near each of these rows is to one query vector [D]."""
        found = np.empty(len(rows), np.float32)
        first = 0
        for part_ND in self.parts:
            here = (rows >= first) & (rows < first + len(part_ND))
            found[here] = part_ND[rows[here] - first].astype(np.float32) @ query_D
            first += len(part_ND)
        return found

    def _search_block(self, queries_QD: NDArray[np.float32], k: int) -> Sequence[Ranking]:
        rankings = [EMPTY] * len(queries_QD)
        widened_ND = np.empty((_SEARCH_BLOCK, self.dimension), np.int32)
        for first, part_ND in self._blocks():
            scores_QN = queries_QD @ _widen(part_ND, widened_ND[: len(part_ND)]).T
            scores_QN[:, ~self.alive_N[first : first + len(part_ND)]] = -np.inf
            for query, scores_N in enumerate(scores_QN):
                rankings[query] = _merge(rankings[query], scores_N, first, k)
        return rankings

    def _blocks(self) -> Iterator[tuple[int, NDArray[np.floating[Any]]]]:
        first = 0
        for part_ND in self.parts:
            for start in range(0, len(part_ND), _SEARCH_BLOCK):
                yield first + start, part_ND[start : start + _SEARCH_BLOCK]
            first += len(part_ND)


def _widen(vectors_ND: NDArray[np.floating[Any]], out_ND: NDArray[np.int32]) -> NDArray[np.float32]:
    """`vectors_ND` as float32, exactly; float16 goes through `out_ND` of the same shape.

    numpy converts halves one by one, 4 times slower than the product that follows. Their bits moved to where float32
    has its own are the number times 2^-112, subnormal ones too; only infinities would differ, and none is kept.
    """
    if vectors_ND.dtype != np.float16:
        return np.asarray(vectors_ND, np.float32)
    np.left_shift(vectors_ND.view(np.int16), 13, out=out_ND, dtype=np.int32)
    out_ND &= -0x70002000  # the sign, which the shift copied over three bits, once
    widened_ND = out_ND.view(np.float32)
    widened_ND *= np.float32(2.0**112)
    return widened_ND


def _merge(so_far: Ranking, scores_N: NDArray[np.float32], start: int, k: int) -> Ranking:
    # Every vector is finite, so what is -inf here was deleted.
    rows = np.flatnonzero(scores_N > (so_far.scores[-1] if len(so_far.rows) == k else -np.inf))
    # Earlier rows come first in the joined arrays, so equal scores stay in row order.
    return best(
        np.concatenate([so_far.scores, scores_N[rows]]), k, np.concatenate([so_far.rows, rows.astype(np.int64) + start])
    )
