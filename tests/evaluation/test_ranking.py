"""Ranking measures against values derived by hand, and against scikit-learn where the definitions meet."""

import math

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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
    named = ["ndcg@11", "ndcg", "mrr@11", "mrr", "recall@10", "recall@1", "recall", "map@10", "map@11"]
    figures = query_measures({"d10": 1}, scores, named)
    assert list(figures) == named
    assert figures["ndcg@11"] == figures["ndcg"] == pytest.approx(1 / math.log2(12))
    assert figures["mrr@11"] == figures["mrr"] == figures["map@11"] == pytest.approx(1 / 11)
    assert (figures["recall@10"], figures["recall@1"], figures["recall"], figures["map@10"]) == (0, 0, 1, 0)


@pytest.mark.parametrize("name", ["", "dcg@10", "ndcg@", "ndcg@0", "ndcg@-1", "ndcg@ten", "recall@1.5", "recall@²"])
def test_a_measure_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="unknown measure"):
        query_measures({"a": 1}, {"a": 1.0}, [name])


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


def trec_eval(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """Our measures by query, computed by trec_eval's own code."""
    names = {
        "ndcg@10": "ndcg_cut_10", "ndcg": "ndcg", "mrr": "recip_rank", "map": "map", "map@10": "map_cut_10",
        "recall@1": "recall_1", "recall@10": "recall_10", "recall@100": "recall_100",
    }  # fmt: skip
    asked = {"ndcg_cut.10", "ndcg", "recip_rank", "map", "map_cut.10", "recall.1,10,100"}
    found = pytrec_eval.RelevanceEvaluator(qrels, asked).evaluate(run)
    figures = {q: {ours: values[theirs] for ours, theirs in names.items()} for q, values in found.items()}
    for values in figures.values():  # trec_eval has no cut-off for it; that of 10 follows from the rank
        values["mrr@10"] = values["mrr"] if values["mrr"] > 1 / 10.5 else 0.0
    return figures


# Few scores and few ids, so that ties, unjudged, missing and negatively judged documents all come often. The ids hold
# what sorts differently as numbers, bytes and letters; the scores what differs only as a 64-bit float.
IDS = ["1", "10", "9", "B", "a", "é", "z", "学", "𝄞", *(f"d{i}" for i in range(30))]
SCORES = st.sampled_from([0.0, 1.0, 1.0 + 1e-9, 1.0 + 1e-6, 1 / 61 + 1 / 62, -3.5, 1e20])
# A query whose grades are all negative never returns from trec_eval's nDCG, and -2 is its mark for "not judged".
JUDGED = st.dictionaries(st.sampled_from(IDS), st.integers(-1, 3), min_size=1).filter(lambda d: max(d.values()) >= 0)
FOUND = st.dictionaries(st.sampled_from(IDS), SCORES, min_size=1)
QUERIES = st.sampled_from(["q1", "q2", "q3", "q4"])


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(QUERIES, JUDGED, min_size=1), st.dictionaries(QUERIES, FOUND))
def test_the_code_of_trec_eval_agrees(qrels: dict[str, dict[str, int]], run: dict[str, dict[str, float]]) -> None:
    theirs = trec_eval(qrels, run)
    usable = {query for query, judged in qrels.items() if any(grade > 0 for grade in judged.values())}
    names = ["ndcg@10", "ndcg", "mrr", "mrr@10", "map", "map@10", "recall@1", "recall@10", "recall@100"]
    for query in usable & run.keys():
        assert query_measures(qrels[query], run[query], names) == pytest.approx(theirs[query], abs=1e-6)
    if usable:  # queries without an answer count as 0 (its option -c), those without a relevant document do not count
        means = {name: sum(theirs[q][name] for q in usable & theirs.keys()) / len(usable) for name in names}
        assert ranking_measures(qrels, run, names) == pytest.approx(means, abs=1e-6)
    for query in theirs.keys() - usable:
        assert set(theirs[query].values()) == {0.0}


def test_long_runs_with_ties_agree_too() -> None:
    rng = np.random.default_rng(0)
    ids = [str(i) for i in range(3000)]
    for _ in range(5):
        found = {ids[d]: float(s) for d, s in zip(rng.permutation(3000)[:1500], rng.integers(0, 40, 1500), strict=True)}
        judged = {ids[d]: int(g) for d, g in zip(rng.permutation(3000)[:300], rng.integers(-1, 4, 300), strict=True)}
        theirs = trec_eval({"q": judged}, {"q": found})["q"]
        assert query_measures(judged, found, list(theirs)) == pytest.approx(theirs, abs=1e-6)
