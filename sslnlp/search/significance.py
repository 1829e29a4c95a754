"""Is one ranking better than another, or was it luck with the queries? Paired tests on a measure's values by query.

Shapes: N queries, R random sign patterns, W words of 64 signs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sslnlp import rng
from sslnlp.arrays import Bytes, Floats, Ints
from sslnlp.evaluation.bootstrap import ratio_figure

PERMUTATIONS = 10_000
"""Sign patterns drawn; where there are not more of them in all, each is tried once and the p-value is exact."""
_BLOCK = 1000


@dataclass(frozen=True)
class Comparison:
    """How a system's mean of a measure differs from a baseline's on the same queries."""

    difference: float
    low: float
    high: float
    """95 % bootstrap interval of the difference, over queries."""
    p: float
    """Two-sided, by the paired randomisation test."""
    p_t: float | None
    """Two-sided, by the paired t-test; None for a single query."""
    better: int
    worse: int
    equal: int
    """Queries on which the system is above, below and level with the baseline."""
    p_holm: float = 1.0
    """`p` corrected for how many systems were compared (`corrected`)."""


def compare(
    values: Sequence[float] | Floats,
    baseline: Sequence[float] | Floats,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Comparison:
    """Hold a system's values [N] of one measure against a baseline's [N], both in the same order of queries."""
    difference_N = np.asarray(values, np.float64) - np.asarray(baseline, np.float64)
    figure = ratio_figure(difference_N, seed=seed)
    better, worse = int((difference_N > 0).sum()), int((difference_N < 0).sum())
    p = randomisation_p(difference_N, permutations=permutations, seed=seed)
    return Comparison(
        difference=figure.value,
        low=figure.low,
        high=figure.high,
        p=p,
        p_t=_t_test_p(difference_N),
        better=better,
        worse=worse,
        equal=len(difference_N) - better - worse,
        p_holm=p,
    )


def randomisation_p(difference_N: Floats, *, permutations: int = PERMUTATIONS, seed: int = 0) -> float:
    """Two-sided p-value of the paired randomisation test (Fisher, 1935; for retrieval Smucker et al., CIKM 2007).

    If the systems were the same, each query's difference could as well have had the other sign: p is the share of sign
    patterns whose sum is at least as far from 0 as the one seen. All patterns are tried when there are at most
    `permutations`; else as many are drawn, keyed on the seed, and the one seen is counted among them, so p is never 0
    (Phipson and Smyth, 2010).
    """
    changed_N = difference_N[difference_N != 0]  # a level query adds 0 under either sign
    if not len(changed_N):
        return 1.0
    seen = abs(changed_N.sum())
    least = seen - 1e-9 * np.abs(changed_N).sum()  # sums in another order differ in the last digits
    exact = 2 ** len(changed_N) <= permutations
    rows, extreme = 2 ** len(changed_N) if exact else permutations, 0
    for start in range(0, rows, _BLOCK):
        row_R = np.arange(start, min(start + _BLOCK, rows))
        sign_RN = _patterns(row_R, len(changed_N)) if exact else _drawn(row_R, len(changed_N), seed)
        extreme += int((np.abs((2.0 * sign_RN - 1.0) @ changed_N) >= least).sum())
    return extreme / rows if exact else (extreme + 1) / (rows + 1)


def _patterns(row_R: Ints, number: int) -> Ints:
    """The binary digits of each row's number: 0 or 1, [R, N]."""
    return row_R[:, None] >> np.arange(number) & 1


def _drawn(row_R: Ints, number: int, seed: int) -> Bytes:
    """Fair coins that depend on (seed, row) alone: 0 or 1, [R, N]."""
    word_RW = rng.bits(seed, "randomisation test", row_R, -(-number // 64))
    return np.unpackbits(word_RW.astype("<u8").view(np.uint8), axis=1, count=number)


def _t_test_p(difference_N: Floats) -> float | None:
    from scipy.stats import ttest_1samp

    if not difference_N.any():
        return 1.0
    if len(difference_N) < 2:
        return None
    if (difference_N == difference_N[0]).all():
        return 0.0  # no spread at all: t is infinite
    return float(ttest_1samp(difference_N, 0.0).pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for there being several, in their order (Holm, 1979).

    The smallest of m is multiplied by m, the next by m - 1, and so on; none may fall below one before it.
    """
    corrected, reached = [0.0] * len(p_values), 0.0
    for done, at in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = max(reached, min(1.0, p_values[at] * (len(p_values) - done)))
        corrected[at] = reached
    return corrected
