"""Measures of classification and regression, through scikit-learn and scipy.

Those are imported where they are used: a run that pretrains has no need of them, and they take two seconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import datasets
from torch import Tensor

from sslnlp.evaluation.local import LocalMetric


class Accuracy(LocalMetric):
    """Share of the examples whose predicted class is the right one: `{"accuracy": ...}`."""

    describes = "Share of the examples whose predicted class is the right one."
    features_of = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        from sklearn.metrics import accuracy_score

        return {"accuracy": float(accuracy_score(references, predictions))}


class MacroF1(LocalMetric):
    """F1 of each class that occurs (as label or as prediction), averaged with equal weights: `{"macro_f1": ...}`.

    A class never predicted counts as 0, so a model that ignores rare classes cannot hide behind the common ones.
    """

    describes = "F1 of each class that occurs among labels or predictions, averaged with equal weights."
    features_of = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        from sklearn.metrics import f1_score

        return {"macro_f1": float(f1_score(references, predictions, average="macro", zero_division=0))}


def class_figures(predictions: Any, references: Any) -> dict[str, float]:
    """`accuracy` and `macro_f1` of predicted classes; both are sequences or arrays of whole numbers [N]."""
    figures: dict[str, float] = {}
    for metric in (Accuracy(), MacroF1()):
        figures |= metric.compute(predictions=predictions, references=references)
    return figures


def multi_label_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """Of `logits` [N, C] against `labels` of 0 and 1 [N, C], scikit-learn's definitions.

    `micro_f1` and `macro_f1` (over the classes that occur among labels or answers) of the answers at probability one
    half, `exact_match` (all C answers of a text right), and `ranking_precision` (label ranking average precision: how
    high each true class stands among all; no threshold). The latter is of the texts that have a class and lack one:
    any order is right for the others, which scikit-learn counts as 1. Without such a text there is none.
    """
    from sklearn.metrics import accuracy_score, f1_score, label_ranking_average_precision_score

    logits, labels = predicted["logits"].numpy(), predicted["labels"].numpy() > 0.5
    answers = logits > 0
    occurring = (labels | answers).any(0)
    macro = f1_score(labels, answers, average=None, zero_division=0)[occurring]
    figures = {
        "micro_f1": float(f1_score(labels, answers, average="micro", zero_division=0)),
        "macro_f1": float(macro.mean()) if len(macro) else 0.0,
        "exact_match": float(accuracy_score(labels, answers)),
    }
    ranked = labels.any(1) & ~labels.all(1)
    if ranked.any():
        figures["ranking_precision"] = float(label_ranking_average_precision_score(labels[ranked], logits[ranked]))
    return figures


def ordinal_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """Of classes that are steps of a scale: `mean_distance` of the predicted from the right step, and, unless all of
    either are one and the same step, `weighted_kappa` (Cohen's with quadratic weights: agreement beyond chance, 1 at
    best)."""
    from sklearn.metrics import cohen_kappa_score

    labelled = predicted["labels"] != -100
    classes = predicted["logits"][labelled].argmax(-1).numpy()
    labels = predicted["labels"][labelled].numpy()
    steps = list(range(predicted["logits"].shape[-1]))
    figures = {"mean_distance": float(abs(classes - labels).mean())}
    if len({*classes.tolist(), *labels.tolist()}) > 1:  # else chance agrees on everything too
        figures["weighted_kappa"] = float(cohen_kappa_score(labels, classes, labels=steps, weights="quadratic"))
    return figures


def regression_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """Of `predicted` [N] against `labels` [N]: `mean_absolute_error` in the unit of the labels, and where they vary
    `r2` (1 - squared error over variance; 0: their mean), `pearson` and `spearman` correlations."""
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import mean_absolute_error, r2_score

    found, labels = predicted["predicted"].double().numpy(), predicted["labels"].double().numpy()
    figures = {"mean_absolute_error": float(mean_absolute_error(labels, found))}
    if len(found) > 1 and labels.std() > 0:
        constant = found.std() == 0  # correlates with nothing
        figures["r2"] = float(r2_score(labels, found))
        figures["pearson"] = 0.0 if constant else float(pearsonr(found, labels)[0])
        figures["spearman"] = 0.0 if constant else float(spearmanr(found, labels)[0])
    return figures


def classification_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """`accuracy` and `macro_f1` of `logits` [N, C] against `labels` [N]; rows labelled -100 are left out."""
    labelled = predicted["labels"] != -100
    classes = predicted["logits"][labelled].argmax(-1).numpy()
    labels = predicted["labels"][labelled].numpy()
    return class_figures(classes, labels)
