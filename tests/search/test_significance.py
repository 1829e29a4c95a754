"""Paired tests against values derived by hand, scipy, and draws in which nothing is there to be found."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import permutation_test, ttest_rel

from sslnlp.search.significance import compare, holm, randomisation_p


def test_two_queries_by_hand() -> None:
    # Signs of (0.3, 0.2) give the sums 0.5, 0.1, -0.1, -0.5: two of four are as far out as 0.5, all as far as 0.1.
    assert randomisation_p(np.array([0.3, 0.2])) == 0.5
    assert randomisation_p(np.array([0.3, -0.2])) == 1.0


def test_all_queries_better_is_two_patterns_of_all() -> None:
    for number in (1, 3, 10):
        assert randomisation_p(np.linspace(0.1, 0.5, number)) == 2 / 2**number
    # Level queries change nothing: ten of them would otherwise make 2^13 patterns.
    assert randomisation_p(np.array([0.1, 0.2, 0.4] + [0.0] * 10)) == 2 / 2**3


def test_sums_that_are_equal_but_for_rounding_count_as_equal() -> None:
    # 0.1 + 0.2 - 0.3 is 5.6e-17 and not 0; every pattern is at least as far out.
    assert randomisation_p(np.array([0.1, 0.2, -0.3])) == 1.0
    assert randomisation_p(np.array([0.1, 0.2, 0.3, 0.0])) == 2 / 2**3


def test_equal_runs_are_not_different() -> None:
    found = compare([0.5, 0.0, 1.0], [0.5, 0.0, 1.0])
    assert (found.difference, found.low, found.high, found.p, found.p_t) == (0, 0, 0, 1, 1)
    assert (found.better, found.worse, found.equal) == (0, 0, 3)


def test_a_comparison_of_a_few_queries() -> None:
    found = compare([0.6, 0.9, 0.2, 0.4], [0.4, 0.4, 0.3, 0.4])
    assert found.difference == pytest.approx(0.15)
    assert found.low < 0.15 < found.high
    assert (found.better, found.worse, found.equal) == (2, 1, 1)
    assert found.p == 4 / 8  # of 0.2, 0.5, -0.1: sums of 0.6 or more are +++ and ++-, and their mirror images
    assert found.p_t == pytest.approx(ttest_rel([0.6, 0.9, 0.2, 0.4], [0.4, 0.4, 0.3, 0.4]).pvalue)
    assert compare([1.0], [0.0]).p_t is None
    assert compare([1.0, 1.0], [0.5, 0.5]).p_t == 0


def test_drawn_patterns_agree_with_all_of_them_and_with_scipy() -> None:
    difference = np.random.default_rng(3).normal(0.3, 1, 12)
    exact = randomisation_p(difference)
    theirs = permutation_test((difference, np.zeros(12)), lambda a, b: a.mean() - b.mean(), permutation_type="samples")
    assert exact == pytest.approx(theirs.pvalue)
    drawn = randomisation_p(difference, permutations=4000)
    assert drawn != exact
    assert abs(drawn - exact) < 4 * np.sqrt(exact * (1 - exact) / 4000)
    assert drawn == randomisation_p(difference, permutations=4000)
    assert drawn != randomisation_p(difference, permutations=4000, seed=1)


def test_drawn_p_is_never_zero_and_every_query_has_its_own_coin() -> None:
    assert randomisation_p(np.full(200, 0.1), permutations=500) == 1 / 501
    # Were two of the 150 coins the same, ±1 at both would be ±2 or ±0 in half of the draws each; as it is, p is 0.5.
    for at in (1, 63, 64, 149):
        pair = np.full(150, 1e-12)
        pair[[0, at]] = 1.0
        assert randomisation_p(pair, permutations=2000) == pytest.approx(0.5, abs=0.05)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])  # 3 x 0.01, 2 x 0.03, then no less than that
    assert holm([0.4, 0.9]) == pytest.approx([0.8, 0.9])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert (holm([0.02]), holm([])) == ([0.02], [])


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_never_lowers_a_p_and_keeps_their_order(p_values: list[float]) -> None:
    corrected = holm(p_values)
    assert all(p <= q <= 1 for p, q in zip(p_values, corrected, strict=True))
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    assert [corrected[at] for at in order] == sorted(corrected)


def test_it_rarely_cries_wolf() -> None:
    """Rankers that are equally good are told apart in about 5 of 100 draws, and a better one nearly always."""
    generator = np.random.default_rng(0)
    rank = generator.geometric(generator.beta(1, 2, (300, 50, 1)), (300, 50, 2))
    alarms = [randomisation_p(d[:, 0] - d[:, 1], permutations=400, seed=at) < 0.05 for at, d in enumerate(1 / rank)]
    assert 6 <= sum(alarms) <= 26  # binomial(300, 0.05): both ends are beyond 99 of 100
    better = 0.3 + 1 / rank[:20, :, 0] - 1 / rank[:20, :, 1]
    assert all(randomisation_p(d, permutations=400) < 0.05 for d in better)
