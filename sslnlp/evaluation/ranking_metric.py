"""The measures of ranking as a metric of `evaluate`."""

from __future__ import annotations

from typing import Any

import datasets

from sslnlp.evaluation.local import LocalMetric
from sslnlp.evaluation.ranking import ranking_measures


class RankingMeasures(LocalMetric):
    """nDCG@10, MRR@10, recall@100 and MAP; one prediction and one reference a query.

    `predictions=[{"documents": [ids], "scores": [floats]}]`, `references=[{"documents": [ids], "grades": [ints]}]`.
    """

    describes = "nDCG@10, MRR@10, recall@100 and MAP with trec_eval's definitions."
    features_of = datasets.Features(
        {
            "predictions": {"documents": [datasets.Value("string")], "scores": [datasets.Value("float64")]},
            "references": {"documents": [datasets.Value("string")], "grades": [datasets.Value("int64")]},
        }
    )

    def _compute(self, predictions: list[dict[str, Any]], references: list[dict[str, Any]]) -> dict[str, float]:
        run = {str(q): dict(zip(p["documents"], p["scores"], strict=True)) for q, p in enumerate(predictions)}
        qrels = {str(q): dict(zip(r["documents"], r["grades"], strict=True)) for q, r in enumerate(references)}
        return ranking_measures(qrels, run)
