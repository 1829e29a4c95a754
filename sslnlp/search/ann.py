"""Approximate nearest neighbours by usearch: a graph over a segment's vectors (HNSW; Malkov & Yashunin, 2016).

The graph only proposes candidates; their scores are computed from the vectors themselves, so a score is the same number
as the exact search gives, and what can differ is only which documents were seen.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslnlp.arrays import Bools
from sslnlp.errors import UserError
from sslnlp.search.dense import DenseIndex
from sslnlp.search.ranking import Ranking, best

NAME = "vectors.usearch"
_BLOCK = 4096
_SAVE = 16 * _BLOCK
_CONNECTIVITY = 16  # links a vector has; with the two breadths below, usearch's own defaults but for a wider search
_BREADTH_ADD = 128
_BREADTH_SEARCH = 128


def require_ann() -> Any:
    """usearch's module, or a UserError that says how to install it."""
    try:
        import usearch.index
    except ImportError as error:
        raise UserError("approximate search needs usearch: pip install 'sslnlp[search]'") from error
    return usearch.index


def write_ann(
    path: Path,
    vectors_ND: NDArray[np.floating[Any]],
    *,
    start: int = 0,
    saved: Callable[[int], None] = lambda done: None,
    progress: Callable[[int], None] = lambda done: None,
) -> None:
    """Write the graph over `vectors_ND` to `path`, added 4,096 at a time; `progress` hears each block's size.

    Every 65,536 vectors, and at the end, the file is replaced and `saved` hears how many it holds; a later call with
    that `start` goes on from there. All cores build it, so two graphs over the same vectors differ a little.
    """
    module = require_ann()
    if start:
        graph = module.Index.restore(str(path))
        graph.expansion_add = _BREADTH_ADD  # the file does not keep it
        start = len(graph)  # more than was told if the kill came between the two
    else:
        graph = module.Index(
            ndim=vectors_ND.shape[1],
            metric="ip",
            dtype="f16",
            connectivity=_CONNECTIVITY,
            expansion_add=_BREADTH_ADD,
        )
    aside = path.with_name(path.name + ".tmp")
    for first in range(start, len(vectors_ND), _BLOCK):
        block_ND = np.ascontiguousarray(vectors_ND[first : first + _BLOCK])
        graph.add(np.arange(first, first + len(block_ND)), block_ND)
        done = first + len(block_ND)
        if done % _SAVE == 0 or done == len(vectors_ND):
            graph.save(str(aside))
            os.replace(aside, path)
            saved(done)
        progress(len(block_ND))


class AnnIndex(DenseIndex):
    """`DenseIndex` with the candidates from the graphs beside its arrays, memory-mapped."""

    def __init__(self, paths: Sequence[Path], deleted: Iterable[int] = ()) -> None:
        super().__init__(paths, deleted)
        module = require_ann()
        self._graphs = [module.Index.restore(str(path.with_name(NAME)), view=True) for path in paths]

    def search(self, queries_QD: NDArray[np.float32], k: int) -> list[Ranking]:
        """About the `k` nearest documents of each query vector [Q, D], by their exact scores."""
        self.check(queries_QD)
        return [self._one(query_D, k) for query_D in queries_QD]

    def _one(self, query_D: NDArray[np.float32], k: int) -> Ranking:
        rows, scores, first = [], [], 0
        for graph, part_ND in zip(self._graphs, self.parts, strict=True):
            found = np.sort(self._candidates(graph, query_D, k, self.alive_N[first : first + len(part_ND)]))
            rows.append(found + first)
            scores.append(part_ND[found].astype(np.float32) @ query_D)
            first += len(part_ND)
        return best(np.concatenate(scores), k, np.concatenate(rows))

    def _candidates(self, graph: Any, query_D: NDArray[np.float32], k: int, alive: Bools) -> NDArray[Any]:
        """At least `k` live rows near the query, where there are so many.

        The graph knows of no deletion: it is asked for more until enough are left. It may also not reach a vector at
        all, so where even the whole of it falls short, every live row is a candidate.
        """
        wanted = min(k, int(alive.sum()))
        asked = k
        while True:
            asked = min(asked, len(alive))
            graph.expansion_search = max(asked, _BREADTH_SEARCH)
            found: NDArray[Any] = graph.search(query_D, asked).keys.astype(np.int64)
            found = found[alive[found]][:k]
            if len(found) >= wanted:
                return found
            if asked == len(alive):
                return np.flatnonzero(alive)
            asked *= 2
