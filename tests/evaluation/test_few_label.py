"""Few-label draws: k a class, by hash, nested in k."""

import hashlib

import pytest

from sslnlp.errors import UserError
from sslnlp.evaluation.few_label import draw, subset

LABELS = [f"class {row % 3}" for row in range(60)] + ["rare"]


def test_k_rows_of_each_class_with_the_smallest_hashes() -> None:
    rows = draw(LABELS, 4, seed=2)
    assert rows == sorted(rows)
    assert len(rows) == 3 * 4 + 1  # the rare class gives its only row
    hashes = {row: hashlib.sha256(f"2:{row}".encode()).hexdigest() for row in range(61)}
    for label in set(LABELS):
        members = [row for row in range(61) if LABELS[row] == label]
        taken = [row for row in rows if LABELS[row] == label]
        assert max(hashes[row] for row in taken) <= min([hashes[row] for row in members if row not in taken] or ["g"])


def test_smaller_draws_are_inside_larger_ones_and_seeds_differ() -> None:
    assert set(draw(LABELS, 2, seed=0)) < set(draw(LABELS, 5, seed=0))
    assert draw(LABELS, 4, seed=0) != draw(LABELS, 4, seed=1)


def test_subset() -> None:
    texts = [f"text {row}" for row in range(61)]
    assert subset(texts, LABELS, 1, seed=0) == [texts[row] for row in draw(LABELS, 1, seed=0)]
    with pytest.raises(UserError, match="one label a row"):
        subset(texts, LABELS[:-1], 1, seed=0)
    with pytest.raises(UserError, match="at least 1"):
        draw(LABELS, 0, seed=0)
