"""Which documents of a ranking are a query's negatives: neither relevant to it, nor copies, nor scored like it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sslnlp.arrays import Ints
from sslnlp.data.hashes import Hashes, hash_same
from sslnlp.errors import UserError
from sslnlp.rng import Permutation
from sslnlp.search.documents import well_formed
from sslnlp.search.fusion import reciprocal_rank_fusion
from sslnlp.search.index import Index
from sslnlp.search.ranking import Ranking

COPY = 0.9
"""Two texts are near-copies from this share of common terms on: |A and B| / |A or B|."""
_CACHED_TERMS = 4096
_DRAWN = 256


@dataclass(frozen=True, kw_only=True)
class Mining:
    """How negatives are chosen. Checked at construction (UserError)."""

    negatives: int = 8
    """For each pair, exactly."""
    depth: int = 100
    """How far down its ranking a query's negatives are looked for."""
    skip_top: int = 0
    """So many of the best ranked that are not known to be relevant are passed over."""
    margin: float = 0.95
    """A negative scores below this share of the positive's score; 0: however high."""
    sample: bool = False
    """Drawn from all of the ranking instead of its best."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("negatives", 1), ("depth", 1), ("skip_top", 0)):
            if getattr(self, name) < least:
                raise UserError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if not 0 <= self.margin <= 1:
            raise UserError(f"margin must be between 0 (off) and 1, got {self.margin}")
        if self.skip_top >= self.depth:
            raise UserError(f"skip_top={self.skip_top} leaves nothing of a ranking of depth {self.depth}")


class Known:
    """Which texts the pairs call relevant to which queries, and which document each text is: 16 bytes a pair, 16 a
    document. Texts are the same when they differ in case and outer white space only, as in training."""

    def __init__(self, query_P: Hashes, positive_P: Hashes, document_D: Hashes) -> None:
        order = np.argsort(query_P, kind="stable")
        self._query_P, self._positive_P = query_P[order], positive_P[order]
        self.document_D = document_D
        """By row of the index."""
        self._order_D = np.argsort(document_D)

    def relevant(self, query: np.uint64) -> Hashes:
        """The hashes of all texts that are relevant to a query, and its own."""
        first, last = np.searchsorted(self._query_P, query, "left"), np.searchsorted(self._query_P, query, "right")
        return np.append(self._positive_P[first:last], query)

    def row_of(self, text: np.uint64) -> int:
        """The row of the document with this hash; there is one for every positive."""
        return int(self._order_D[np.searchsorted(self.document_D, text, sorter=self._order_D)])


class Found(NamedTuple):
    """The ranking of one query: documents `rows` [k], best first, and a score of each [k] to judge them by."""

    rows: Ints
    scores: NDArray[np.floating[Any]]
    positive: float
    """The positive's score; -inf where the ranking ends before it."""


class Retriever:
    """Ranks the documents of an index by BM25, by vectors, or fused, and scores them on one scale."""

    def __init__(self, index: Index, *, dense: bool, bm25: bool, depth: int, batch_size: int = 32) -> None:
        self.index, self.dense, self.bm25, self.depth, self.batch_size = index, dense, bm25, depth, batch_size

    def search(self, queries: Sequence[str], positives: Sequence[int]) -> list[Found]:
        """`positives`: the row of each query's positive."""
        if not self.dense:
            found = self.index.bm25.search(queries, self.depth)
            return [_by_rank(one, row) for one, row in zip(found, positives, strict=True)]
        vectors_QD = self.index.encoder.encode(queries, "query", batch_size=self.batch_size)
        found = self.index.dense.search(vectors_QD, self.depth)
        if self.bm25:
            pairs = zip(self.index.bm25.search(queries, self.depth), found, strict=True)
            found = [reciprocal_rank_fusion(pair, self.depth) for pair in pairs]
        asked = zip(found, positives, vectors_QD, strict=True)
        return [self._by_vector(one.rows, row, vector_D) for one, row, vector_D in asked]

    def _by_vector(self, rows: Ints, positive: int, vector_D: NDArray[np.float32]) -> Found:
        # A sum of reciprocal ranks does not say how near two documents are: the cosine does, also of what BM25 found.
        documents_KD = np.asarray(self.index.dense.vectors_ND[np.append(rows, positive)], dtype=np.float32)
        scores = documents_KD @ vector_D
        return Found(rows, scores[:-1], float(scores[-1]))


def _by_rank(found: Ranking, positive: int) -> Found:
    # Where the ranking ends before the positive, everything in it scores higher (or as high).
    own = found.scores[found.rows == positive]
    return Found(found.rows, found.scores, float(own[0]) if len(own) else -math.inf)


class Pair(NamedTuple):
    """One pair while its negatives are looked for."""

    number: int
    query: str
    positive: str
    relevant: Hashes
    terms: frozenset[str]
    """Of the positive."""


Scored = list[tuple[int, float]]
"""Rows of the index with the judge's scores; nan without one."""


class Miner:
    """Chooses the negatives of pairs, and counts what it leaves out.

    documents: only rows below this become negatives. judge: a `search.reranker.Reranker` or None.
    """

    def __init__(
        self, retriever: Retriever, known: Known, documents: int, options: Mining, judge: Any, *, batch_size: int = 32
    ) -> None:
        self.retriever, self.known, self.documents = retriever, known, documents
        self.options, self.judge, self.batch_size = options, judge, batch_size
        self.counts = {"relevant": 0, "copies": 0, "margin": 0, "filled": 0}
        self._store, self._analyzer = retriever.index.documents, retriever.index.analyzer
        self._terms_of = lru_cache(_CACHED_TERMS)(lambda row: self._terms(self._text(row)))

    def mined(self, rows: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        """The pairs of these numbers with their negatives, without those that cannot have as many."""
        queries = [well_formed(row["query"]) for row in rows]
        asked, texts = (hash_same([row[side] for row in rows]) for side in ("query", "positive"))
        found = self.retriever.search(queries, [self.known.row_of(text) for text in texts])
        for at, row in enumerate(rows):
            positive = well_formed(row["positive"])
            relevant = self.known.relevant(asked[at])
            pair = Pair(numbers[at], queries[at], positive, relevant, self._terms(positive))
            if (mined := self._mined(pair, found[at])) is not None:
                yield mined

    def _mined(self, pair: Pair, found: Found) -> dict[str, Any] | None:
        own = self._scores(pair, [pair.positive])[0] if self.judge is not None else math.nan
        chosen = self._choose(pair, self._candidates(pair, found), own)
        if missing := self.options.negatives - len(chosen):
            chosen += self._fill(pair, {row for row, _ in chosen})
            if len(chosen) < self.options.negatives:
                return None
            self.counts["filled"] += missing
        mined = {"query": pair.query, "positive": pair.positive, "negatives": [self._text(row) for row, _ in chosen]}
        return mined if self.judge is None else {**mined, "scores": [own, *(score for _, score in chosen)]}

    def _candidates(self, pair: Pair, found: Found) -> Iterator[int]:
        """Rows of the ranking that may be negatives, in the order in which they are tried."""
        options = self.options
        ours_K = found.rows < self.documents
        open_K = ours_K & ~np.isin(self.known.document_D[found.rows], pair.relevant)
        self.counts["relevant"] += int(ours_K.sum() - open_K.sum())
        rows, scores = found.rows[open_K][options.skip_top :], found.scores[open_K][options.skip_top :]
        if options.sample and len(rows):
            order = Permutation(len(rows), options.seed, f"mine {pair.number}")(np.arange(len(rows)))
            rows, scores = rows[order], scores[order]
        # A share of the positive's score; of one below 0, as much below it.
        bound = found.positive - (1 - options.margin) * abs(found.positive) if len(rows) else 0.0
        judged = options.margin > 0 and self.judge is None
        for row, score in zip(rows.tolist(), scores.tolist(), strict=True):
            if judged and not score < bound:
                self.counts["margin"] += 1
            elif self._copies(pair, row):
                self.counts["copies"] += 1
            else:
                yield row

    def _choose(self, pair: Pair, candidates: Iterator[int], own: float) -> Scored:
        """The first candidates that pass, judged as many at a time as are still wanted."""
        chosen: Scored = []
        # exp(score - own) is the share of the odds; compared as logarithms, since it may be any number.
        bound = own + math.log(self.options.margin) if self.options.margin > 0 else math.inf
        while some := list(islice(candidates, self.options.negatives - len(chosen))):
            for row, score in self._scored(pair, some):
                if self.judge is not None and not score < bound:
                    self.counts["margin"] += 1
                else:
                    chosen.append((row, score))
        return chosen

    def _fill(self, pair: Pair, taken: set[int]) -> Scored:
        """Documents drawn for this pair, as many as are missing if there are."""
        drawn = Permutation(self.documents, self.options.seed, f"mine fill {pair.number}")
        fitting = (
            row
            for start in range(0, self.documents, _DRAWN)
            for row in drawn(np.arange(start, min(start + _DRAWN, self.documents))).tolist()
            if row not in taken and self.known.document_D[row] not in pair.relevant and not self._copies(pair, row)
        )
        return self._scored(pair, list(islice(fitting, self.options.negatives - len(taken))))

    def _copies(self, pair: Pair, row: int) -> bool:
        terms = self._terms_of(row)
        return bool(terms) and len(terms & pair.terms) >= COPY * len(terms | pair.terms)

    def _text(self, row: int) -> str:
        return self._store[row].content

    def _terms(self, text: str) -> frozenset[str]:
        return frozenset(self._analyzer.terms(text))

    def _scored(self, pair: Pair, rows: list[int]) -> Scored:
        if self.judge is None or not rows:
            return [(row, math.nan) for row in rows]
        return list(zip(rows, self._scores(pair, [self._text(row) for row in rows]), strict=True))

    def _scores(self, pair: Pair, texts: list[str]) -> list[float]:
        scores = self.judge.score(pair.query, texts, batch_size=self.batch_size)
        if not np.isfinite(scores).all():
            raise UserError(f"{self.judge.name} gives scores that are not finite: it cannot teach")
        return [float(score) for score in scores]
