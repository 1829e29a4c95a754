"""Joining rankings: by ranks, which need no common scale, or by scores, which say how sure each part is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslnlp.arrays import Ints
from sslnlp.search.ranking import EMPTY, Ranking, best

Scores = Callable[[Ints], NDArray[np.floating[Any]]]
"""Rows in ascending order -> their scores for a query."""
RRF_K = 60
"""The constant of the paper: large enough that the first few ranks of one list cannot outvote agreement."""
COSINE_WEIGHT = 2.0
"""Of a squared cosine beside a BM25 score that is 1 at best: what an encoder is sure of has 0.6 to 0.8."""


def reciprocal_rank_fusion(rankings: Sequence[Ranking], k: int) -> Ranking:
    """The best `k` by the sum over rankings of 1 / (RRF_K + rank), ranks from 1 (Cormack et al., SIGIR 2009).

    A document missing from a list gains nothing there. Only ranks count, so BM25 and cosine scores never need a
    common scale. Equal sums keep the lower row first.
    """
    if not any(len(ranking.rows) for ranking in rankings):
        return EMPTY
    rows, places = np.unique(np.concatenate([ranking.rows for ranking in rankings]), return_inverse=True)
    gains = np.concatenate([1.0 / (RRF_K + 1.0 + np.arange(len(ranking.rows))) for ranking in rankings])
    return best(np.bincount(places, weights=gains).astype(np.float64), k, rows)


def score_fusion(words: Ranking, near: Ranking, counted: Scores, cosines: Scores, k: int) -> Ranking:
    """The best `k` by BM25 as a share of the best, plus twice the square of the cosine (nothing for one below 0).

    Ranks cannot say that the best of a list is bad, and half of such a fusion is noise where the vectors are. Scores
    can (Bruch et al., 2023, arXiv:2210.11934, who weigh two scores), with cosines as they are, not stretched to the
    best of them, since an encoder that finds nothing similar has small ones. `counted` and `cosines` tell the BM25
    score and the cosine of rows that `words`, or `near`, does not list. Equal sums keep the lower row first.
    """
    rows: Ints = np.union1d(words.rows, near.rows)
    if not len(rows):
        return EMPTY
    share = _scores(rows, words, counted) / (words.scores[0] if len(words.rows) else 1.0)
    return best(share + COSINE_WEIGHT * np.maximum(_scores(rows, near, cosines), 0) ** 2, k, rows)


def _scores(rows: Ints, listed: Ranking, others: Scores) -> NDArray[np.float64]:
    """Of each of `rows`, in ascending order: as the list has it, or as `others` tells."""
    found, at = np.zeros(len(rows)), np.searchsorted(rows, listed.rows)
    found[at] = listed.scores
    missing = np.setdiff1d(np.arange(len(rows)), at)
    found[missing] = others(rows[missing])
    return found


def rescored(first: Ranking, scores: NDArray[np.floating[Any]], k: int, weight: float = 1.0) -> Ranking:
    """The best `k` when the first `len(scores)` documents of `first` are ordered anew by `scores`, float64.

    With a `weight` below 1 both scores count, each from 0 for the least to 1 for the best of these documents: the new
    one as `weight`, the old one as the rest. A reranker of middling quality helps so where by itself it would spoil a
    good first place.

    The others follow in their old order, each one below the last: 1, 2, 3, … less than the lowest new score, so that
    sorting by score (as trec_eval does) keeps the order, and recall and MAP still see the whole list.
    """
    number = len(scores)
    new: NDArray[np.floating[Any]] = np.asarray(scores, np.float64)
    if weight < 1:
        new = weight * _stretched(new) + (1 - weight) * _stretched(first.scores[:number])
    head = best(new, number, first.rows[:number])
    tail = first.rows[number:]
    below = head.scores[-1] - np.arange(1, len(tail) + 1)
    return Ranking(np.concatenate([head.rows, tail])[:k], np.concatenate([head.scores, below])[:k])


def _stretched(scores: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """From 0 for the least to 1 for the best; 0 where all are equal."""
    least, most = float(scores.min()), float(scores.max())
    return np.asarray(scores - least, np.float64) / (most - least or 1.0)
