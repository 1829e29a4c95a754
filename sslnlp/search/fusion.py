"""Joining rankings that do not share a scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sslnlp.search.ranking import EMPTY, Ranking, best

RRF_K = 60
"""The constant of the paper: large enough that the first few ranks of one list cannot outvote agreement."""


def reciprocal_rank_fusion(rankings: Sequence[Ranking], k: int, constant: int = RRF_K) -> Ranking:
    """The best `k` by the sum over rankings of 1 / (constant + rank), ranks from 1 (Cormack et al., SIGIR 2009).

    A document missing from a list gains nothing there. Only ranks count, so BM25 and cosine scores never need a
    common scale. Equal sums keep the lower row first.
    """
    if not any(len(ranking.rows) for ranking in rankings):
        return EMPTY
    rows, places = np.unique(np.concatenate([ranking.rows for ranking in rankings]), return_inverse=True)
    gains = np.concatenate([1.0 / (constant + 1.0 + np.arange(len(ranking.rows))) for ranking in rankings])
    return best(np.bincount(places, weights=gains).astype(np.float64), k, rows)
