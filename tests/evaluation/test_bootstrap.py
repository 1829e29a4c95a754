"""Intervals: as wide as theory says, the same every time, and defined where there is next to nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sslnlp.evaluation.bootstrap import drawn_figure, halved_figure, ratio_figure


def test_a_mean_has_the_interval_of_its_standard_error() -> None:
    values = np.random.default_rng(0).normal(3.0, 2.0, 400)
    figure = ratio_figure(values)
    half = 1.96 * values.std() / math.sqrt(400)
    assert figure.value == pytest.approx(values.mean())
    assert figure.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert figure.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    assert figure == ratio_figure(values)


def test_a_ratio_weighs_items_by_their_size() -> None:
    figure = ratio_figure([10.0, 0.0], [10.0, 90.0], transform=np.exp)
    assert figure.value == pytest.approx(math.exp(0.1))
    assert figure.low == pytest.approx(1.0)  # the second item, twice
    assert figure.high == pytest.approx(math.exp(1.0))


def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    generator = np.random.default_rng(1)
    held = 0
    for _ in range(100):
        figure = ratio_figure(generator.exponential(1.0, 60))
        held += figure.low <= 1.0 <= figure.high
    assert 0.87 <= held / 100 <= 0.99


@pytest.mark.parametrize("figure", [drawn_figure, halved_figure])
def test_any_statistic_of_the_items(figure: object) -> None:
    values = np.random.default_rng(2).normal(0.0, 1.0, 300)
    found = figure(lambda index: float(np.mean(values[index])), 300)  # type: ignore[operator]
    half = 1.96 * values.std() / math.sqrt(300)
    assert found.value == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.25)


def test_next_to_nothing() -> None:
    assert math.isnan(ratio_figure([]).value)
    assert math.isnan(ratio_figure([1.0], [0.0]).value)
    one = ratio_figure([2.0])
    assert (one.value, one.low, one.high, one.number) == (2.0, 2.0, 2.0, 1)
    assert math.isnan(halved_figure(lambda index: 1.0, 3).low)
