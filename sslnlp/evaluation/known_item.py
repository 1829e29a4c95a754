"""Known-item retrieval on held-out text itself: half a document finds its other half. No label is needed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from sslnlp.arrays import Vectors
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.evaluation.local import VECTOR_PAIRS, LocalMetric

SHORTEST = 40
"""Characters of a text that is cut in two; what is shorter is left out."""

BLOCK = 256
"""Queries that are compared with all documents at a time."""


def halves(texts: Iterable[str], limit: int | None = None) -> tuple[list[str], list[str]]:
    """The first and the second halves of at most `limit` different texts, cut at the white space nearest the middle,
    or in the middle of text that has none near it. Texts of less than 40 characters are left out."""
    first, second, seen = [], [], set()
    for text in texts:
        plain = " ".join(text.split())
        if len(plain) < SHORTEST or plain in seen:
            continue
        seen.add(plain)
        middle = len(plain) // 2
        before, after = plain.rfind(" ", 0, middle), plain.find(" ", middle)
        places = [p for p in (before, after) if p > 0 and abs(p - middle) <= len(plain) // 4]
        place = min(places, key=lambda p: abs(p - middle), default=middle)
        first.append(plain[:place].strip())
        second.append(plain[place:].strip())
        if len(first) == limit:
            break
    return first, second


def known_item_figures(query_NH: Vectors, document_NH: Vectors) -> dict[str, Figure]:
    """`known_item_recall@1` and `known_item_mrr` where document i is what query i looks for, by dot product.

    Chance is a random order of the N documents. Raises `UserError` for less than two.
    """
    number = len(query_NH)
    if number < 2:
        raise UserError(f"known items need at least two texts of {SHORTEST} characters, here are {number}")
    rank_N = np.empty(number)
    for start in range(0, number, BLOCK):
        score_QN = query_NH[start : start + BLOCK] @ document_NH.T
        own_Q = score_QN[np.arange(len(score_QN)), np.arange(start, start + len(score_QN))]
        # A tie counts against: one vector for all finds nothing.
        rank_N[start : start + BLOCK] = (score_QN >= own_Q[:, None]).sum(1)
    harmonic = float((1 / np.arange(1, number + 1)).sum())
    return {
        "known_item_recall@1": ratio_figure(rank_N == 1, chance=1 / number),
        "known_item_mrr": ratio_figure(1 / rank_N, chance=harmonic / number),
    }


class KnownItem(LocalMetric):
    """`known_item_recall@1` and `known_item_mrr`: `predictions` are the vectors of queries, `references` those of what
    each of them looks for."""

    describes = "How often, and how early, a query's vector finds its own document among all."
    features_of = VECTOR_PAIRS

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        figures = known_item_figures(np.asarray(predictions, np.float32), np.asarray(references, np.float32))
        return {name: figure.value for name, figure in figures.items()}
