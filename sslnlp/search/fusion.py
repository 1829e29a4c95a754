"""Joining rankings that do not share a scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslnlp.search.ranking import EMPTY, Ranking, best

RRF_K = 60
"""The constant of the paper: large enough that the first few ranks of one list cannot outvote agreement."""


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


def rescored(first: Ranking, scores: NDArray[np.floating[Any]], k: int, weight: float = 1.0) -> Ranking:
    """The best `k` when the first `len(scores)` documents of `first` are ordered anew by `scores`, float64.

    With a `weight` below 1 both orders count, as in `reciprocal_rank_fusion`: the new one as `weight`, the old one as
    the rest. A reranker of middling quality helps so where by itself it would spoil a good first place.

    The others follow in their old order, each one below the last: 1, 2, 3, … less than the lowest new score, so that
    sorting by score (as trec_eval does) keeps the order, and recall and MAP still see the whole list.
    """
    number = len(scores)
    new: NDArray[np.floating[Any]] = np.asarray(scores, np.float64)
    if weight < 1:
        gains = 1.0 / (RRF_K + 1.0 + np.arange(number))
        mixed = (1 - weight) * gains
        mixed[np.argsort(-new, kind="stable")] += weight * gains
        new = mixed
    head = best(new, number, first.rows[:number])
    tail = first.rows[number:]
    below = head.scores[-1] - np.arange(1, len(tail) + 1)
    return Ranking(np.concatenate([head.rows, tail])[:k], np.concatenate([head.scores, below])[:k])
