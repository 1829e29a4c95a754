"""Labels spread over neighbours: known answers by hand, and what stays as it is."""

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest

from sslnlp.data.joined_rows import JoinedRows
from sslnlp.data.stream import Stream
from sslnlp.data.table_rows import TableRows
from sslnlp.label_spreading import neighbour_graph, spread_labels
from sslnlp.recipe import Options, Recipe
from sslnlp.recipe.build import Parts
from sslnlp.recipe.pseudo import surest, with_pseudo_labels
from tests.contract import make_collator


def ring(count: int, centre: float, width: float, seed: int) -> np.ndarray:
    """`count` unit vectors of the plane whose angles lie around `centre`, `width` wide."""
    angle = centre + width * (np.random.default_rng(seed).random(count) - 0.5)
    return np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)


def test_one_label_a_cluster_names_the_cluster() -> None:
    vectors = np.concatenate([ring(40, 0.0, 0.5, 0), ring(10, 1.6, 0.5, 1), ring(25, 3.1, 0.5, 2)])
    truth = np.repeat([0, 1, 2], [40, 10, 25])
    labels = np.full(75, -100)
    labels[[3, 44, 60]] = truth[[3, 44, 60]]
    found, sure = spread_labels(vectors, labels, neighbours=5)
    assert found.tolist() == truth.tolist()
    assert sure[[3, 44, 60]].tolist() == [1, 1, 1]
    assert ((sure > 0.34) & (sure <= 1)).all()


def test_what_all_texts_share_says_nothing_of_who_is_near() -> None:
    """Words that differ a little beside a large common part, as in a model that was not trained for vectors."""
    draws = np.random.default_rng(0)
    truth = np.arange(60) % 3
    vectors = (np.eye(3, 16)[truth] + 0.4 * draws.standard_normal((60, 16))).astype(np.float32)
    labels = np.where(np.arange(60) < 6, truth, -100)
    apart, sure = spread_labels(vectors, labels, neighbours=5)
    shared = 40 * np.eye(1, 16, 9, dtype=np.float32)
    found, as_sure = spread_labels(vectors + shared, labels, neighbours=5)
    assert found.tolist() == apart.tolist()
    np.testing.assert_allclose(as_sure, sure, atol=1e-3)


def test_what_is_known_stays_even_against_its_neighbours() -> None:
    vectors = ring(30, 0.0, 0.4, 0)
    labels = np.full(30, -100)
    labels[:10], labels[10] = 0, 1
    found, _ = spread_labels(vectors, labels, neighbours=5)
    assert found[10] == 1
    assert found[:10].tolist() == [0] * 10


def test_what_no_label_reaches_is_said_so() -> None:
    vectors = np.eye(40, dtype=np.float32)[np.repeat([0, 20], 6)]  # two crowds that share nothing
    labels = np.full(12, -100)
    labels[0] = 0
    labels[1] = 1
    found, sure = spread_labels(vectors, labels, neighbours=4)
    assert (found[:6] >= 0).all()
    assert found[6:].tolist() == [-100] * 6
    assert sure[6:].tolist() == [0.0] * 6


def test_the_graph_is_symmetric_without_loops_and_the_same_in_any_block(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = ring(50, 0.0, 6.0, 3)
    whole = neighbour_graph(vectors, 6).toarray()
    assert np.allclose(whole, whole.T)
    assert not whole.diagonal().any()
    assert ((whole > 0).sum(1) >= 6).all()
    monkeypatch.setattr("sslnlp.label_spreading._BLOCK", 7)
    assert np.allclose(neighbour_graph(vectors, 6).toarray(), whole)


def test_of_each_class_the_surest_train() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, -100, 2])
    sure = np.array([0.9, 0.5, 0.8, 0.7, 0.4, 0.6, 1.0, 0.1])
    assert surest(labels, sure, 0.5).tolist() == [0, 2, 5, 7]
    assert surest(labels, sure, 1.0).tolist() == [0, 1, 2, 3, 4, 5, 7]
    assert surest(np.full(3, -100), np.ones(3), 0.5).tolist() == []


def test_joined_rows_carry_the_labels_they_were_given() -> None:
    first, second = [{"text": "a", "label": 3}, {"text": "b", "label": 4}], [{"text": "c", "label": -100}] * 2
    rows = JoinedRows((first, None), (second, np.array([7, 8])))
    assert len(rows) == 4
    assert [row["label"] for row in rows.rows([3, 0, 2, 1])] == [8, 3, 7, 4]
    assert rows[2] == {"text": "c", "label": 7}
    assert second[0]["label"] == -100


def test_all_processes_train_on_the_labels_that_the_main_one_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own guesses could differ in a digit, and so could the rows of what is to be one run."""
    monkeypatch.setattr("sslnlp.recipe.pseudo.by_main", lambda _: (np.array([2, 3]), np.array([1, 0])))
    known, more = (
        TableRows(datasets.Dataset.from_dict({"text": [f"{kind} {n}" for n in range(4)], "label": [label] * 4}))
        for kind, label in (("known", 1), ("more", -100))
    )
    parts = Parts(
        recipe=Recipe(objective=Options("classification")), tokenizer=None, contract=None,
        collator=make_collator("classification"), max_length=8, stream=Stream(known, 3),
        valid=None, valid_bytes=None, unlabelled=more,
    )  # fmt: skip
    objective: Any = SimpleNamespace(pseudo_labels=0.5)
    rows = with_pseudo_labels(parts, objective).stream.source.rows(range(6))
    assert [(row["text"], row["label"]) for row in rows[3:]] == [("known 3", 1), ("more 2", 1), ("more 3", 0)]
    assert parts.facts == {"pseudo_labelled_rows": 2}
