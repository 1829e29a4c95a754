"""Ranking measures against values derived by hand, and against scikit-learn where the definitions meet."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, ndcg_score

from sslnlp.errors import UserError
from sslnlp.evaluation import RankingMeasures
from sslnlp.evaluation.ranking import known_item_measures, nearest, query_measures, ranked, ranking_measures


def test_graded_query_by_hand() -> None:
    # Ranked: a (grade 1), b (0), c (3), d (unjudged); e (grade 2) is never found.
    figures = query_measures({"a": 1, "b": 0, "c": 3, "e": 2}, {"a": 4.0, "b": 3.0, "c": 2.0, "d": 1.0})
    dcg = 1 / math.log2(2) + 3 / math.log2(4)
    ideal = 3 / math.log2(2) + 2 / math.log2(3) + 1 / math.log2(4)
    assert figures["ndcg@10"] == pytest.approx(dcg / ideal)
    assert figures["mrr@10"] == 1.0
    assert figures["recall@100"] == pytest.approx(2 / 3)
    assert figures["map"] == pytest.approx((1 / 1 + 2 / 3 + 0) / 3)


def test_cut_offs() -> None:
    scores = {f"d{i:02}": -float(i) for i in range(12)}
    figures = query_measures({"d10": 1}, scores)  # rank 11
    assert figures == {"ndcg@10": 0.0, "mrr@10": 0.0, "recall@100": 1.0, "map": pytest.approx(1 / 11)}
    figures = query_measures({"d10": 1}, scores, k=11, recall_at=10)
    assert figures["ndcg@11"] == pytest.approx(1 / math.log2(12))
    assert figures["mrr@11"] == pytest.approx(1 / 11)
    assert figures["recall@10"] == 0


def test_ties_go_to_the_larger_id_and_scores_compare_as_32_bit_floats() -> None:
    assert ranked({"a": 1.0, "c": 1.0, "b": 1.0, "z": 0.5}) == ["c", "b", "a", "z"]
    assert ranked({"a": 1.0 + 1e-9, "b": 1.0}) == ["b", "a"]
    assert ranked({"10": 1.0, "9": 1.0}) == ["9", "10"]  # ids are strings, also when they look like numbers


def test_means_are_over_queries_with_a_relevant_document() -> None:
    qrels = {"found": {"a": 1}, "missed": {"b": 2}, "nothing relevant": {"a": 0}}
    run = {"found": {"a": 1.0}, "nothing relevant": {"a": 1.0}, "not judged": {"a": 1.0}}
    assert ranking_measures(qrels, run) == {"ndcg@10": 0.5, "mrr@10": 0.5, "recall@100": 0.5, "map": 0.5}
    with pytest.raises(UserError, match="no query has a relevant document"):
        ranking_measures({"q": {"a": 0}}, run)


def test_scikit_learn_agrees_on_full_rankings_without_ties() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        grades, scores = rng.integers(0, 4, 30), rng.permutation(30).astype(float)
        grades[0] = 1
        ids = [f"d{i}" for i in range(30)]
        figures = query_measures(
            dict(zip(ids, grades.tolist(), strict=True)), dict(zip(ids, scores.tolist(), strict=True))
        )
        assert figures["ndcg@10"] == pytest.approx(ndcg_score([grades], [scores], k=10))
        assert figures["map"] == pytest.approx(average_precision_score(grades > 0, scores))


def test_metric_module_computes_alone_and_in_batches() -> None:
    predictions = [{"documents": ["a", "b"], "scores": [2.0, 1.0]}, {"documents": ["a", "b"], "scores": [2.0, 1.0]}]
    references = [{"documents": ["a"], "grades": [1]}, {"documents": ["b"], "grades": [1]}]
    expected = ranking_measures({"0": {"a": 1}, "1": {"b": 1}}, {str(q): {"a": 2.0, "b": 1.0} for q in range(2)})
    assert expected["mrr@10"] == 0.75
    assert RankingMeasures().compute(predictions=predictions, references=references) == expected
    metric = RankingMeasures()
    for prediction, reference in zip(predictions, references, strict=True):
        metric.add(prediction=prediction, reference=reference)
    assert metric.compute() == expected


def test_nearest_orders_as_the_measures_do() -> None:
    documents = np.array([[1, 0], [0, 1], [1, 0], [0.5, 0]], dtype=np.float32)
    ids = ["b", "x", "a", "c"]
    (run,) = nearest(np.array([[1, 0]], dtype=np.float32), documents, ids, 3)
    assert list(run) == ["b", "a", "c"] == ranked(run)
    (run,) = nearest(np.array([[1, 0]], dtype=np.float32), documents, ids, 1)
    assert list(run) == ["b"]  # the cut falls between equal scores: still the larger id


def test_known_items() -> None:
    # Query 7 has two positives (100, 300); query 8 has 200. Vectors are axis-aligned, so the order is known.
    predicted = {
        "query": torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]),
        "document": torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]]),
        "query_hash": torch.tensor([7, 8, 7]),
        "document_hash": torch.tensor([100, 200, 300]),
    }
    figures = known_item_measures(predicted)
    # Query 7 ranks 100, 200, 300: average precision (1 + 2/3) / 2. Query 8 ranks 300, 200, 100: reciprocal rank 1/2.
    assert figures["map"] == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert figures["mrr@10"] == pytest.approx((1 + 1 / 2) / 2)
    assert figures["recall@100"] == 1
