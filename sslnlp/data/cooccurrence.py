"""How often tokens of a corpus stand near each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sslnlp.arrays import Bools, Ints
from sslnlp.data.store import TokenStore

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

LIMIT = 1 << 22
"""Tokens that are counted of a longer corpus: more of them change embeddings of a few hundred numbers hardly at all."""
_RUN = 1 << 18
_PIECE = 1 << 10
"""Tokens of a document that go to one half together."""


def cooccurrences(
    store: TokenStore,
    vocab_size: int,
    *,
    window: int,
    prefix: Sequence[int] = (),
    suffix: Sequence[int] = (),
    limit: int = LIMIT,
) -> tuple[csr_matrix, csr_matrix]:
    """C[x, y]: how often y follows x inside a document, at a distance of s tokens up to `window` counted as 1/s (the
    weights of GloVe; Pennington et al., 2014), in either half of the text. float32 [vocab_size, vocab_size] each.

    The halves are drawn document by document, a long one in pieces. `prefix` and `suffix` are what stands around a
    document in a row; the store does not hold them. Of a corpus longer than `limit` tokens, runs spread evenly over it
    are read.
    """
    from scipy import sparse

    first = second = sparse.csr_matrix((vocab_size, vocab_size), dtype=np.float32)
    for start, stop in _runs(store.num_tokens, limit):
        ids, documents = _framed(store, start, stop, prefix, suffix)
        in_first = _drawn(documents, start)
        for distance in range(1, min(window, len(ids) - 1) + 1):
            inside = documents[distance:] == documents[:-distance]
            first = first + _pairs(ids, inside & in_first[:-distance], distance, vocab_size)
            second = second + _pairs(ids, inside & ~in_first[:-distance], distance, vocab_size)
    return first, second


def _pairs(ids: Ints, where: Bools, distance: int, vocab_size: int) -> csr_matrix:
    from scipy import sparse

    pairs = ids[:-distance][where], ids[distance:][where]
    weights = np.full(len(pairs[0]), 1 / distance, np.float32)
    return sparse.csr_matrix((weights, pairs), shape=(vocab_size, vocab_size))


def _drawn(documents: Ints, seed: int) -> Bools:
    """Of each token whether it is in the first half: drawn, since documents may be sorted, or in turns of two kinds."""
    begins = np.flatnonzero(np.diff(documents, prepend=-1))
    inside = np.arange(len(documents)) - np.repeat(begins, np.diff(begins, append=len(documents)))
    piece = np.cumsum(inside % _PIECE == 0) - 1
    halves = np.random.default_rng(seed).permutation(np.arange(piece[-1] + 1) % 2 == 0)
    drawn: Bools = halves[piece]
    return drawn


def _runs(length: int, limit: int) -> Iterator[tuple[int, int]]:
    """Of [0, length): all of it if that is at most `limit`, else `limit` in runs evenly spread."""
    runs = -(-min(length, limit) // _RUN)
    for i in range(runs):
        start = i * length // runs
        yield start, min(start + _RUN, (i + 1) * length // runs)


def _framed(
    store: TokenStore, start: int, stop: int, prefix: Sequence[int], suffix: Sequence[int]
) -> tuple[Ints, Ints]:
    """The tokens of [start, stop) with what stands where a document begins or ends, and the document of each."""
    first, last = np.searchsorted(store.offsets, [start, stop - 1], side="right") - 1
    edges = store.offsets[first : last + 2]
    inside = np.clip(edges, start, stop)
    documents = np.repeat(np.arange(first, last + 1), np.diff(inside))
    filled = np.flatnonzero(np.diff(edges))
    ends = filled[edges[filled + 1] <= stop]
    begins = filled[edges[filled] >= start]
    # Where one document ends the next begins: its suffix is inserted first.
    places = np.concatenate([np.repeat(edges[ends + 1], len(suffix)), np.repeat(edges[begins], len(prefix))]) - start
    added = np.concatenate(
        [np.tile(np.asarray(suffix, np.int64), len(ends)), np.tile(np.asarray(prefix, np.int64), len(begins))]
    )
    owners = first + np.concatenate([np.repeat(ends, len(suffix)), np.repeat(begins, len(prefix))])
    ids = store.run(start, stop).astype(np.int64)
    return np.insert(ids, places, added), np.insert(documents, places, owners)
