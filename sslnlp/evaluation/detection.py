"""Measures of detection: how well a score tells the positive cases from the others, through scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
from torch import Tensor

from sslnlp.evaluation.local import LocalMetric


class AUC(LocalMetric):
    """Area under the ROC curve: the share of pairs (positive, negative) whose positive has the higher score.

    `predictions` are scores, `references` 1 (positive) or 0; ties count half. 0.5 is chance, however rare positives
    are. `{"auc": ...}`, and `{}` where one of the kinds does not occur: there is no pair to compare.
    """

    describes = "Share of the pairs of a positive and a negative case whose positive has the higher score."
    features_of = datasets.Features({"predictions": datasets.Value("float32"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[float], references: Sequence[int]) -> dict[str, float]:
        from sklearn.metrics import roc_auc_score

        if not 0 < sum(references) < len(references):
            return {}
        return {"auc": float(roc_auc_score(references, predictions))}


def detection_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """`auc` of `scores` [N] against `positive` bool [N]."""
    scores, positive = predicted["scores"].float().numpy(), predicted["positive"].long().numpy()
    found: dict[str, float] = AUC().compute(predictions=scores, references=positive)
    return found
