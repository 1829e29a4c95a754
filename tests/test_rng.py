"""Counter-based draws: uniform, independent, and a permutation at every length."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sslnlp.rng import Permutation, bits, key, uniform


def test_draws_are_a_function_of_seed_purpose_and_position() -> None:
    whole = uniform(1, "mask", [5, 6, 7], 10)
    assert np.array_equal(uniform(1, "mask", [6], 10)[0], whole[1])
    assert np.array_equal(uniform(1, "mask", [7, 5], 4), whole[[2, 0], :4])
    assert not np.array_equal(uniform(2, "mask", [5], 10)[0], whole[0])
    assert not np.array_equal(uniform(1, "crop", [5], 10)[0], whole[0])


def test_draws_are_uniform_and_uncorrelated() -> None:
    x = uniform(0, "test", np.arange(1000), 1000)
    assert ((x >= 0) & (x < 1)).all()
    # A million draws: the mean of a uniform has standard deviation 0.00029.
    assert abs(x.mean() - 0.5) < 0.0015
    assert abs(x.var() - 1 / 12) < 0.0005
    counts = np.histogram(x, bins=256, range=(0, 1))[0]
    assert ((counts - counts.mean()) ** 2 / counts.mean()).sum() < 350  # chi-square, 255 degrees of freedom: p < 1e-4
    for a, b in ((x[:-1], x[1:]), (x[:, :-1], x[:, 1:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.005


def test_all_bits_vary() -> None:
    ones = np.unpackbits(bits(3, "b", range(64), 64).view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.005


def test_keys_part_their_purposes() -> None:
    assert key(1, "a", "b") != key(1, "ab") != key(1, "b", "a")
    assert 0 <= key(0) < 2**63


@settings(max_examples=60, deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, 2**40))
def test_a_permutation_hits_every_index_once(n: int, seed: int) -> None:
    assert sorted(Permutation(n, seed)(np.arange(n)).tolist()) == list(range(n))


def test_a_permutation_of_ten_billion_needs_no_memory() -> None:
    image = Permutation(10**10, 0)(np.array([0, 1, 10**10 - 1]))
    assert len(set(image.tolist())) == 3
    assert image.min() >= 0
    assert image.max() < 10**10


def test_laps_differ_and_mix() -> None:
    first, second = (Permutation(1000, 0, purpose=f"lap{lap}")(np.arange(1000)) for lap in (0, 1))
    assert (first == second).mean() < 0.01
    assert abs(np.corrcoef(first, np.arange(1000))[0, 1]) < 0.12
    with pytest.raises(ValueError, match="at least one element"):
        Permutation(0, 0)
