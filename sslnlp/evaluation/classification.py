"""Measures of classification: accuracy and macro-F1, through scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import datasets
from sklearn.metrics import accuracy_score, f1_score
from torch import Tensor

from sslnlp.evaluation.local import LocalMetric


class Accuracy(LocalMetric):
    """Share of the examples whose predicted class is the right one: `{"accuracy": ...}`."""

    describes = "Share of the examples whose predicted class is the right one."
    features_of = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(LocalMetric):
    """F1 of each class that occurs (as label or as prediction), averaged with equal weights: `{"macro_f1": ...}`.

    A class never predicted counts as 0, so a model that ignores rare classes cannot hide behind the common ones.
    """

    describes = "F1 of each class that occurs among labels or predictions, averaged with equal weights."
    features_of = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


def classification_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """`accuracy` and `macro_f1` of `logits` [N, C] against `labels` [N]; rows labelled -100 are left out."""
    labelled = predicted["labels"] != -100
    classes = predicted["logits"][labelled].argmax(-1).numpy()
    labels = predicted["labels"][labelled].numpy()
    return {
        **Accuracy().compute(predictions=classes, references=labels),
        **MacroF1().compute(predictions=classes, references=labels),
    }
