"""AUC by hand, by its definition over pairs, and where there is no pair."""

import evaluate
import numpy as np
import pytest
import torch

from sslnlp.evaluation import AUC, Accuracy
from sslnlp.evaluation.detection import detection_measures


def test_by_hand() -> None:
    # Pairs (positive, negative): .9 > .1, .9 > .5, .5 > .1, and .5 = .5 counts half.
    figures = detection_measures(
        {"scores": torch.tensor([0.9, 0.1, 0.5, 0.5]), "positive": torch.tensor([1, 0, 1, 0]).bool()}
    )
    assert figures == {"auc": pytest.approx(3.5 / 4)}


def test_share_of_ordered_pairs() -> None:
    random = np.random.default_rng(0)
    positive = random.random(300) < 0.1
    scores = (random.normal(size=300) + positive).astype(np.float32).round(1)
    difference = scores[positive][:, None] - scores[~positive][None, :]
    expected = ((difference > 0) + 0.5 * (difference == 0)).mean()
    metric = AUC()
    metric.add_batch(predictions=scores[:100], references=positive[:100].astype(int))
    metric.add_batch(predictions=scores[100:], references=positive[100:].astype(int))
    assert metric.compute() == {"auc": pytest.approx(expected)}


@pytest.mark.parametrize("references", [[0, 0], [1, 1]])
def test_one_kind_alone_has_no_figure(references: list[int]) -> None:
    assert AUC().compute(predictions=[0.2, 0.7], references=references) == {}


def test_it_combines_with_others() -> None:
    both = evaluate.combine([AUC(), Accuracy()])
    assert both.compute(predictions=[0, 1], references=[0, 1]) == {"auc": 1.0, "accuracy": 1.0}
