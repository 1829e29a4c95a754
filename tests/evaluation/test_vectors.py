"""Measures of vectors against values that can be had by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from sslnlp.errors import UserError
from sslnlp.evaluation.geometry import Geometry, geometry_measures
from sslnlp.evaluation.known_item import KnownItem, halves, known_item_figures
from sslnlp.evaluation.probes import Probes, probe_measures
from sslnlp.evaluation.similarity import Spearman, read_similar, similarity_measures, spearman
from sslnlp.report.config import ReportConfig
from sslnlp.report.material import Material


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- geometry ---------------------------------------------------------------------------------------------------------


def test_axes_are_all_directions_and_one_vector_is_none() -> None:
    axes = np.concatenate([np.eye(8), -np.eye(8)]).astype(np.float32)
    figures = geometry_measures(axes, axes)
    assert figures["effective_rank"].value == pytest.approx(8)
    assert figures["alignment"].value == pytest.approx(0)
    assert figures["anisotropy"].value == pytest.approx(-1 / 15)  # only the opposite vector is not at a right angle
    one = geometry_measures(np.ones((16, 8), np.float32) * np.arange(1, 17)[:, None].astype(np.float32))
    assert one["effective_rank"].value == pytest.approx(1, abs=1e-3)
    assert one["anisotropy"].value == pytest.approx(1)
    assert one["uniformity"].value == pytest.approx(0, abs=1e-6)


def test_random_directions() -> None:
    figures = geometry_measures(normal(400, 64), normal(400, 64, seed=1))
    assert figures["alignment"].value == pytest.approx(figures["alignment"].chance, abs=0.05)
    assert figures["anisotropy"].low < 0.0 < figures["anisotropy"].high + 1e-3
    assert figures["uniformity"].value == pytest.approx(-4 + 8 / 64, abs=0.02)  # cosines vary by 1 / width
    plain = Geometry().compute(predictions=normal(400, 64), references=normal(400, 64, seed=1))
    assert plain == pytest.approx({name: figure.value for name, figure in figures.items()})


def test_geometry_of_one_text() -> None:
    with pytest.raises(UserError, match="at least two texts"):
        geometry_measures(normal(1, 4))


# --- known items ------------------------------------------------------------------------------------------------------


def test_halves_are_cut_between_words() -> None:
    long = "alpha beta gamma delta epsilon zeta eta theta iota kappa"
    chinese = "维基百科是一个自由内容、公开编辑的多语言网络百科全书协作计划通过维基技术使得包括您在内的所有人都可以"
    first, second = halves([long, "too short", long, chinese])
    assert first[0] + " " + second[0] == long
    assert len(first) == 2  # the short one and the repeated one are left out
    assert first[1] + second[1] == chinese
    assert abs(len(first[1]) - len(second[1])) <= 1
    assert len(halves([long, chinese], limit=1)[0]) == 1


def test_known_items_are_found_by_their_own_half() -> None:
    eye = np.eye(5, dtype=np.float32)
    assert known_item_figures(eye, eye)["known_item_recall@1"].value == 1
    moved = eye[[1, 0, 2, 3, 4]]
    figures = known_item_figures(eye + 0.01 * eye[::-1], moved)
    assert figures["known_item_recall@1"].value == pytest.approx(3 / 5)
    collapsed = known_item_figures(np.ones((5, 3), np.float32), np.ones((5, 3), np.float32))
    assert collapsed["known_item_recall@1"].value == 0  # a tie is not found
    assert collapsed["known_item_mrr"].value == pytest.approx(1 / 5)
    assert KnownItem().compute(predictions=eye, references=eye)["known_item_mrr"] == 1


def test_chance_of_known_items_is_what_random_vectors_reach() -> None:
    figures = known_item_figures(normal(600, 32), normal(600, 32, seed=1))
    for name in ("known_item_recall@1", "known_item_mrr"):
        assert figures[name].low <= figures[name].chance <= figures[name].high + 0.003


def test_known_items_of_one_text() -> None:
    with pytest.raises(UserError, match="at least two texts"):
        known_item_figures(normal(1, 4), normal(1, 4))


# --- similarity -------------------------------------------------------------------------------------------------------


def test_spearman_is_scipys_with_ties() -> None:
    a, b = np.round(normal(50), 1).astype(float), np.round(normal(50, seed=1), 1).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert Spearman().compute(predictions=a, references=b)["spearman"] == pytest.approx(spearman(a, b))
    assert math.isnan(spearman(np.ones(4), np.arange(4.0)))


def test_similarity_of_vectors_that_say_what_people_say() -> None:
    angle = np.linspace(0, 3, 40)
    rows = [{"sentence1": "0", "sentence2": str(a), "score": 5 - a} for a in angle]

    def encode(texts: list[str]) -> np.ndarray:
        return np.array([[math.cos(float(t)), math.sin(float(t))] for t in texts], np.float32)

    figure = similarity_measures(encode, read_similar(rows, "x"))["sts_spearman"]
    assert figure.value == pytest.approx(1)
    assert figure.chance == 0


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"sentence1": "a", "text": "b", "score": 1}], "row 0: no 'sentence2'.*here are sentence1, text, score"),
        ([{"sentence1": "a", "sentence2": "b", "score": "much"}], "score 'much' is not a number"),
        ([{"sentence1": "a", "sentence2": "b", "score": 1}], "1 pairs of 1 different scores"),
        ([], "0 pairs"),
    ],
)
def test_sentence_pairs_that_are_none(rows: list[dict[str, object]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_similar(rows, "pairs.csv")


# --- probes -----------------------------------------------------------------------------------------------------------


def test_probes_find_what_is_there_and_nothing_else() -> None:
    centres = 3 * normal(3, 16, seed=5)
    labels = np.arange(300) % 3
    vectors = centres[labels] + normal(300, 16)
    names = [f"class {label}" for label in labels]
    figures = probe_measures(vectors[:200], names[:200], vectors[200:], names[200:])
    assert figures["knn"].value > 0.97
    assert figures["linear_probe"].value > 0.97
    noise = probe_measures(normal(200, 16), names[:200], normal(100, 16, seed=1), names[200:])
    for figure in noise.values():
        assert figure.low <= figure.chance + 0.12
        assert figure.chance == pytest.approx(1 / 3, abs=0.01)
    plain = Probes().compute(
        predictions=vectors[200:], references=names[200:], train_vectors=vectors[:200], train_labels=names[:200]
    )
    assert plain == pytest.approx({name: figure.value for name, figure in figures.items()})


def test_probes_refuse_labels_that_were_never_shown() -> None:
    with pytest.raises(UserError, match="label 'c' of the test texts never occurs"):
        probe_measures(normal(4, 2), ["a", "b", "a", "b"], normal(1, 2), ["c"])
    with pytest.raises(UserError, match="at least two labels"):
        probe_measures(normal(2, 2), ["a", "a"], normal(1, 2), ["a"])


@pytest.mark.parametrize("shared", [0, 2])
def test_texts_that_a_probe_learns_from_and_is_tested_on_are_told(
    tmp_path: Path, shared: int, caplog: pytest.LogCaptureFixture
) -> None:
    """The nearest neighbour of such a text is itself: with one file for both kNN is always right."""
    rows = [json.dumps({"text": f"words {n}", "label": n % 2}) + "\n" for n in range(8)]
    (train := tmp_path / "a.jsonl").write_text("".join(rows[:4]))
    (test := tmp_path / "b.jsonl").write_text("".join(rows[4 - shared :]))
    Material.read(ReportConfig(probe_train=str(train), probe_test=str(test)), lambda n: [])
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(" test items")[0] for line in said] == (["2 of the 6"] if shared else [])
