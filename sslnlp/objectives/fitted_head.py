"""A linear map from vectors to classes that is fitted rather than trained: logistic regression."""

from __future__ import annotations

import warnings

import numpy as np

from sslnlp.arrays import Ints, Vectors


def fitted_head(
    vector_NH: Vectors,
    label_N: Ints,
    classes: int,
    *,
    strength: float,
    closest: float = 0.0,
    sure_N: Vectors | None = None,
    intercept: bool = True,
) -> tuple[Vectors, Vectors]:
    """Weight float32 [C, H] and bias [C] of logistic regression, for `classes` classes of which some may not occur.

    Args:
        strength: C, the larger, the less it is regularised, on vectors whose mean distance from their mean is 1. Their
            length would not do: most of it is what all texts share, in a model that was not trained for vectors.
        closest: share of the mean length of the vectors that this distance is taken to be at least.
        sure_N: how much each row counts; None: all alike.
        intercept: False where the map has no bias to take it: then it is 0.

    A class that does not occur gets no weight and the least bias. Raises `ValueError` where fewer than two occur.
    """
    from sklearn.linear_model import LogisticRegression

    mean_H = vector_NH.mean(0)
    apart, length = (float(np.linalg.norm(vectors, axis=1).mean()) for vectors in (vector_NH - mean_H, vector_NH))
    scale = 1 / max(apart, closest * length, 1e-6)
    if not intercept:
        mean_H = np.zeros_like(mean_H)  # nothing could stand for it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a thousand steps were not enough moves the last digit
        head = LogisticRegression(C=strength, fit_intercept=intercept, max_iter=1000)
        head.fit((vector_NH - mean_H) * scale, label_N, sure_N)
    weight, bias = np.atleast_2d(head.coef_), np.atleast_1d(head.intercept_)
    if len(head.classes_) == 2:  # one row that tells the second class from the first
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    whole_CH, whole_C = np.zeros((classes, vector_NH.shape[1]), np.float32), np.full(classes, bias.min(), np.float32)
    whole_CH[head.classes_], whole_C[head.classes_] = weight * scale, bias
    return whole_CH, (whole_C - whole_CH @ mean_H).astype(np.float32)
