"""Measures of ranking with trec_eval's definitions, on runs and judgements as plain mappings.

A run is `{query id: {document id: score}}`, judgements (qrels) are `{query id: {document id: grade}}`; a grade above 0
is relevant. Documents without a judgement are not relevant. Averages are over the queries that have a relevant
document; a query the run says nothing about counts as 0 (`trec_eval -c`). Measures are named as in `ndcg@10`, `mrr`,
`recall@100`, `map`: a kind, and the number of results looked at where it is not all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from sslnlp.errors import UserError

if TYPE_CHECKING:  # who measures a search has rankings and no tensors
    from torch import Tensor

Run = Mapping[str, Mapping[str, float]]
Qrels = Mapping[str, Mapping[str, int]]


def ranked(scores: Mapping[str, float]) -> list[str]:
    """Document ids in trec_eval's order: score (as a 32-bit float) descending, then id descending."""
    return [d for _, d in sorted(((float(np.float32(s)), d) for d, s in scores.items()), reverse=True)]


def ndcg(grades: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """nDCG of the first k grades in ranked order. Linear gain, log2(rank + 1) discount; below 0 counts as 0."""

    def dcg(values: Sequence[int]) -> float:
        return sum(max(g, 0) / math.log2(r + 2) for r, g in enumerate(values[:k]))

    return dcg(grades) / dcg(sorted(judged, reverse=True))


def reciprocal_rank(grades: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """1 / rank of the first relevant document, 0 if none is among the first k."""
    return next((1 / (r + 1) for r, g in enumerate(grades[:k]) if g > 0), 0.0)


def recall(grades: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """Share of the query's relevant documents that are among the first k."""
    return sum(g > 0 for g in grades[:k]) / sum(g > 0 for g in judged)


def average_precision(grades: Sequence[int], judged: Sequence[int], k: int | None) -> float:
    """Mean over the query's relevant documents of the precision where each is found (0 where it is not)."""
    found, total = 0, 0.0
    for r, g in enumerate(grades[:k]):
        if g > 0:
            found += 1
            total += found / (r + 1)
    return total / sum(g > 0 for g in judged)


KINDS: dict[str, Callable[[Sequence[int], Sequence[int], int | None], float]] = {
    "ndcg": ndcg,
    "mrr": reciprocal_rank,
    "recall": recall,
    "map": average_precision,
}
"""Functions of (grades in ranked order, all grades of the query, cut-off or None), for a query with a relevant one."""

MEASURES = ("ndcg@10", "mrr@10", "recall@100", "map")
"""What is measured where nothing else is asked for."""

LEAST = 10
"""Candidates below which finding the right one says little: these look at the first ten."""


def parse_measure(name: str) -> tuple[str, int | None]:
    """`ndcg@10` -> ("ndcg", 10), `map` -> ("map", None). Raises UserError for anything else."""
    kind, at, cut = name.partition("@")
    if kind not in KINDS or (at and not (cut.isascii() and cut.isdigit() and int(cut) > 0)):
        known = ", ".join(KINDS)
        raise UserError(f"unknown measure {name!r}: take one of {known}, with a cut-off where wanted (recall@10)")
    return kind, int(cut) if at else None


def query_measures(
    judged: Mapping[str, int], scores: Mapping[str, float], measures: Sequence[str] = MEASURES
) -> dict[str, float]:
    """The named `measures` of one query; empty when it has no relevant document."""
    all_grades = list(judged.values())
    if not any(grade > 0 for grade in all_grades):
        return {}
    grades = [judged.get(document, 0) for document in ranked(scores)]
    parsed = {name: parse_measure(name) for name in measures}
    return {name: KINDS[kind](grades, all_grades, cut) for name, (kind, cut) in parsed.items()}


def mean_measures(queries: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Means of `query_measures`, empty ones left out. `UserError` when no query has a relevant document."""
    figures = [measures for measures in queries if measures]
    if not figures:
        raise UserError("no query has a relevant document, so ranking cannot be measured; check the judgements (qrels)")
    return {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}


def ranking_measures(qrels: Qrels, run: Run, measures: Sequence[str] = MEASURES) -> dict[str, float]:
    """Means of the named `measures` over the queries of `qrels`."""
    return mean_measures(query_measures(judged, run.get(query, {}), measures) for query, judged in qrels.items())


def nearest(
    query_QH: npt.NDArray[np.float32], document_DH: npt.NDArray[np.float32], ids: Sequence[str], depth: int
) -> Iterator[dict[str, float]]:
    """The `depth` documents with the largest dot product with each query, as {id: score}; ties go to the larger id.

    One query at a time, so that a thousand documents for each of many queries are never in memory together.
    """
    order = np.array(sorted(range(len(ids)), key=ids.__getitem__, reverse=True))
    for start in range(0, len(query_QH), 256):
        for scores in query_QH[start : start + 256] @ document_DH.T:
            best = order[np.argsort(-scores[order], kind="stable")[:depth]]  # stable: larger ids stay first
            yield {ids[d]: float(scores[d]) for d in best}


def known_item_measures(predicted: Mapping[str, Tensor], depth: int = 1000) -> dict[str, float]:
    """Ranking measures where the corpus is every held-out positive: `query`, `document` [N, H] and their hashes [N].

    Equal texts are one query or one document; a query's relevant documents are all those it is paired with. Empty where
    every query is its own document: each vector finds itself, whatever the model, and no checkpoint would be better.
    """
    if predicted["query_hash"].equal(predicted["document_hash"]):
        return {}
    asked, texts = predicted["query_hash"].tolist(), predicted["document_hash"].tolist()
    query_row = {h: i for i, h in enumerate(asked)}
    document_row = {h: i for i, h in enumerate(texts)}
    qrels: dict[str, dict[str, int]] = {str(h): {} for h in query_row}
    for q, d in zip(asked, texts, strict=True):
        qrels[str(q)][str(d)] = 1
    found = nearest(
        predicted["query"].numpy()[list(query_row.values())],
        predicted["document"].numpy()[list(document_row.values())],
        [str(h) for h in document_row],
        depth,
    )
    return mean_measures(map(query_measures, qrels.values(), found))
