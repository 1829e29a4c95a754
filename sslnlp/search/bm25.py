"""BM25 by bm25s: every term's score in every document is computed once, at indexing, and only summed at query time."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sslnlp.errors import UserError
from sslnlp.search.analysis import Analyzer
from sslnlp.search.ranking import EMPTY, Ranking, best


def write_bm25(folder: Path, texts: Iterable[str], analyzer: Analyzer) -> None:
    """Index `texts` into `folder` (bm25s's own files). Raises UserError when no text holds a searchable word."""
    import bm25s

    vocabulary: dict[str, int] = {}
    # Term ids in first-seen order (a set's order would change from run to run), 4 bytes each while they are collected.
    ids = [
        array("i", [vocabulary.setdefault(term, len(vocabulary)) for term in analyzer.terms(text)]) for text in texts
    ]
    if not vocabulary:
        raise UserError("No document holds a searchable word: every word is a stop word or a single letter.")
    model = bm25s.BM25()
    model.index((ids, vocabulary), show_progress=False)
    model.save(str(folder), show_progress=False)


class BM25:
    """A written BM25 index, its score table memory-mapped."""

    def __init__(self, folder: Path, analyzer: Analyzer) -> None:
        import bm25s

        self.analyzer = analyzer
        self._model: Any = bm25s.BM25.load(str(folder), mmap=True, show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[Ranking]:
        """The best `k` documents of each query that share at least one term with it; none for stop words only."""
        return [self._one(query, k) for query in queries]

    def _one(self, query: str, k: int) -> Ranking:
        ids = self._model.get_tokens_ids(self.analyzer.terms(query))
        if not ids:
            return EMPTY
        scores = np.asarray(self._model.get_scores_from_ids(ids), dtype=np.float32)
        matched = np.flatnonzero(scores > 0)
        return best(scores[matched], k, matched)
