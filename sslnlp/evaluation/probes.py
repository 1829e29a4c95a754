"""What frozen vectors know of a label: nearest neighbours and a linear probe.

Shapes: N texts, H width of a vector.
"""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Hashable, Sequence

import datasets
import numpy as np

from sslnlp.arrays import Vectors
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, ratio_figure
from sslnlp.evaluation.local import LocalMetric

log = logging.getLogger(__name__)


NEIGHBOURS = 10
STRENGTH = 10.0
"""C of the logistic regression, on vectors scaled to a mean length of the root of their width."""


def probe_measures(
    train_NH: Vectors, train_labels: Sequence[str], test_NH: Vectors, test_labels: Sequence[str]
) -> dict[str, Figure]:
    """Accuracy on the test texts of `knn` (the majority of the 10 training texts of largest cosine, nearer ones weigh
    more) and of `linear_probe` (logistic regression on the centred vectors). Chance: always the largest class.

    Raises `UserError` for a test label that training never shows, or one class only.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    seen = set(train_labels)
    if len(seen) < 2:
        raise UserError(f"a probe needs at least two labels, the training texts have {len(seen)}")
    if unseen := sorted(set(test_labels) - seen):
        raise UserError(f"label {unseen[0]!r} of the test texts never occurs in the training texts")
    chance = Counter(train_labels).most_common(1)[0][0]
    share = float(np.mean([label == chance for label in test_labels]))
    mean_H = train_NH.mean(0, dtype=np.float64)
    train, test = train_NH - mean_H, test_NH - mean_H
    scale = np.sqrt((train**2).sum(-1).mean() / train.shape[1]) or 1.0
    found = {}
    knn = KNeighborsClassifier(min(NEIGHBOURS, len(train_NH)), metric="cosine", weights="distance")
    linear = LogisticRegression(C=STRENGTH / train.shape[1], max_iter=1000)
    for name, model, features in (
        ("knn", knn, (train_NH, test_NH)),
        ("linear_probe", linear, (train / scale, test / scale)),
    ):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that a thousand steps were not enough moves the last digit
            predicted = model.fit(features[0], train_labels).predict(features[1])
        found[name] = ratio_figure(np.asarray(predicted) == np.asarray(test_labels), chance=share)
    return found


def tell_shared(train: Sequence[Hashable], test: Sequence[Hashable]) -> None:
    """Log in one line how many of the `test` items the probe learns from as well: each is its own nearest neighbour."""
    known = set(train)
    shared = sum(item in known for item in test)
    if shared:
        log.warning(
            "%d of the %d test items of the probe stand among its training items too, so its figures come out too "
            "high: take them out of probe_train",
            shared,
            len(test),
        )


class Probes(LocalMetric):
    """Accuracy of `knn` and `linear_probe` on frozen vectors: `predictions` are the test vectors, `references` their
    labels; `compute` also takes `train_vectors` and `train_labels`."""

    describes = "What frozen vectors know of a label: accuracy of nearest neighbours and of a linear probe."
    features_of = datasets.Features(
        {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("string")}
    )

    def _compute(
        self,
        predictions: Sequence[Sequence[float]],
        references: Sequence[str],
        train_vectors: Sequence[Sequence[float]],
        train_labels: Sequence[str],
    ) -> dict[str, float]:
        train, test = (np.asarray(vectors, np.float32) for vectors in (train_vectors, predictions))
        figures = probe_measures(train, [str(label) for label in train_labels], test, references)
        return {name: figure.value for name, figure in figures.items()}
