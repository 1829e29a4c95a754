"""Top-k, BM25, exact dense search and fusion, each against arithmetic done another way."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sslnlp.errors import UserError
from sslnlp.search import dense
from sslnlp.search.analysis import Analyzer
from sslnlp.search.bm25 import BM25, write_table
from sslnlp.search.dense import DenseIndex
from sslnlp.search.fusion import reciprocal_rank_fusion, rescored, score_fusion
from sslnlp.search.postings import Postings, write_postings
from sslnlp.search.ranking import EMPTY, Ranking, best


def write_bm25(folder: Path, texts: Sequence[str], analyzer: Analyzer) -> None:
    write_postings(folder / "postings", texts, analyzer)
    write_table(folder, Postings.load(folder / "postings"))


@given(st.lists(st.integers(-3, 3), max_size=30), st.integers(1, 35))
def test_best_is_the_head_of_a_stable_sort(values: list[int], k: int) -> None:
    found = best(np.array(values, dtype=np.float32), k)
    assert found.rows.tolist() == sorted(range(len(values)), key=lambda at: (-values[at], at))[:k]
    assert found.scores.tolist() == [values[at] for at in found.rows]


def test_bm25_score_is_the_formula(tmp_path: Path) -> None:
    write_bm25(tmp_path, ["lift lift wing", "wing", "heat heat heat heat"], Analyzer("none"))
    [found] = BM25(tmp_path, Analyzer("none")).search(["lift wing"], 10)
    k1, b, mean_length = 1.5, 0.75, 8 / 3

    def part(count: int, length: int, documents: int) -> float:
        idf = math.log(1 + (3 - documents + 0.5) / (documents + 0.5))
        return idf * count / (count + k1 * (1 - b + b * length / mean_length))

    assert found.rows.tolist() == [0, 1]  # the third shares no word and is no result
    assert found.scores.tolist() == pytest.approx([part(2, 3, 1) + part(1, 3, 2), part(1, 1, 2)], rel=1e-5)


@pytest.mark.parametrize("query", ["the of and", "", "unseen words", "a b c"])
def test_a_query_without_a_known_term_finds_nothing(tmp_path: Path, query: str) -> None:
    write_bm25(tmp_path, ["the lift of a wing"], Analyzer())
    assert len(BM25(tmp_path, Analyzer()).search([query], 5)[0].rows) == 0


def test_a_corpus_of_stop_words_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="searchable word"):
        write_bm25(tmp_path, ["the of", "and a"], Analyzer())


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_blocked_search_is_a_full_sort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    monkeypatch.setattr(dense, "_SEARCH_BLOCK", 4)
    monkeypatch.setattr(dense, "_QUERY_BLOCK", 2)
    generator = np.random.default_rng(0)
    vectors = generator.integers(-2, 3, (23, 3)).astype(dtype)  # small integers: many exact ties
    np.save(tmp_path / "v.npy", vectors)
    queries = generator.integers(-2, 3, (5, 3)).astype(np.float32)
    for k in (1, 6, 40):
        found = DenseIndex([tmp_path / "v.npy"]).search(queries, k)
        for query, ranking in zip(queries, found, strict=True):
            scores = vectors.astype(np.float32) @ query
            assert ranking.rows.tolist() == sorted(range(23), key=lambda row: (-scores[row], row))[:k]
            assert ranking.scores.tolist() == scores[ranking.rows].tolist()


def test_every_float16_is_widened_exactly() -> None:
    every = np.arange(65536, dtype=np.uint16).view(np.float16)
    finite = every[np.isfinite(every)][None]
    widened = dense._widen(finite, np.empty(finite.shape, np.int32))
    assert np.array_equal(widened.view(np.int32), finite.astype(np.float32).view(np.int32))


def test_another_dimension_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.zeros((2, 3), np.float32))
    with pytest.raises(UserError, match="4 dimensions, the index has 3"):
        DenseIndex([tmp_path / "v.npy"]).search(np.zeros((1, 4), np.float32), 1)


def test_reciprocal_rank_fusion_by_hand() -> None:
    one = Ranking(np.array([5, 2, 9]), np.array([30.0, 20.0, 10.0]))
    two = Ranking(np.array([2, 7]), np.array([0.9, 0.1]))
    fused = reciprocal_rank_fusion([one, two], 10)
    assert fused.rows.tolist() == [2, 5, 7, 9]
    assert fused.scores.tolist() == pytest.approx([1 / 62 + 1 / 61, 1 / 61, 1 / 62, 1 / 63])
    assert reciprocal_rank_fusion([one, EMPTY], 2).rows.tolist() == [5, 2]
    assert len(reciprocal_rank_fusion([EMPTY, EMPTY], 2).rows) == 0


def test_score_fusion_by_hand() -> None:
    words = Ranking(np.array([5, 2, 9]), np.array([40.0, 20.0, 10.0]))
    near = Ranking(np.array([2, 7, 3]), np.array([0.9, 0.5, -0.8]))
    asked: list[int] = []

    def cosines(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.array([0.1, -0.2])[: len(rows)]  # of 5 and 9, which the list of the nearest does not hold

    def counted(rows: np.ndarray) -> np.ndarray:
        asked.extend(rows.tolist())
        return np.array([0.0, 4.0])[: len(rows)]  # of 3 and 7: one was cut off, the other has no word of the query

    fused = score_fusion(words, near, counted, cosines, 10)
    assert asked == [3, 7, 5, 9]
    assert fused.rows.tolist() == [2, 5, 7, 9, 3]
    assert fused.scores.tolist() == pytest.approx([0.5 + 2 * 0.81, 1 + 2 * 0.01, 0.1 + 2 * 0.25, 0.25, 0])
    assert score_fusion(words, near, counted, cosines, 2).rows.tolist() == [2, 5]
    none = np.zeros_like
    assert score_fusion(EMPTY, near, none, none, 2).rows.tolist() == [2, 7]
    assert len(score_fusion(EMPTY, EMPTY, none, none, 2).rows) == 0


def test_vectors_that_say_nothing_leave_the_order_of_words() -> None:
    """Reciprocal ranks give them half of the say."""
    words = Ranking(np.arange(50), np.linspace(20, 5, 50))
    rows = np.random.default_rng(0).permutation(50)
    near = Ranking(rows, 0.97 + np.linspace(1e-3, 0, 50))  # all beside each other
    fused = score_fusion(words, near, np.zeros_like, np.zeros_like, 50)
    assert fused.rows.tolist() == list(range(50))
    assert reciprocal_rank_fusion([words, near], 50).rows.tolist() != list(range(50))


def test_a_reranker_that_cannot_tell_leaves_the_order() -> None:
    first = Ranking(np.array([5, 2, 9]), np.array([3.0, 2.0, 1.0]))
    for scores in ([7.0, 7.0], [7.0]):
        assert rescored(first, np.array(scores), 3, weight=0.5).rows.tolist() == [5, 2, 9]
    assert rescored(first, np.array([1.0, 2.0]), 3, weight=0.6).rows.tolist() == [2, 5, 9]
    assert rescored(first, np.array([1.0, 2.0]), 3, weight=0.4).rows.tolist() == [5, 2, 9]


def test_scores_of_rows_are_those_of_the_search(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float16)
    np.save(tmp_path / "a.npy", vectors[:5])
    np.save(tmp_path / "b.npy", vectors[5:])
    index = DenseIndex([tmp_path / "a.npy", tmp_path / "b.npy"])
    query = np.ones(4, np.float32)
    found = index.search(query[None], 9)[0]
    np.testing.assert_allclose(index.scores(query, found.rows), found.scores, rtol=1e-6)
