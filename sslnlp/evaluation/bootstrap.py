"""How sure a figure is: intervals from drawing the measured items anew (Efron, 1979).

Shapes: N items (documents, pairs, queries), R draws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sslnlp.arrays import Floats, Ints

DRAWS = 1000
HALVES = 100
LEVEL = 0.95
AT_ONCE = 2**18
"""Items that are drawn in one go: few items a thousand times in a moment, many in little memory."""


@dataclass(frozen=True)
class Figure:
    """A measured figure and the interval in which 95 of 100 repetitions on other items of the kind are expected."""

    value: float
    low: float
    high: float
    number: int
    """Items it was measured on."""
    chance: float | None = None
    """What a model that knows nothing scores; None where that is not known."""


def ratio_figure(
    parts: Sequence[float] | Floats,
    wholes: Sequence[float] | Floats | None = None,
    *,
    chance: float | None = None,
    transform: Callable[[Floats], Floats] = lambda x: x,
    seed: int = 0,
) -> Figure:
    """`transform(sum of parts / sum of wholes)` over N items, a mean where `wholes` is None; items are drawn anew."""
    part_N = np.asarray(parts, dtype=np.float64)
    whole_N = np.ones_like(part_N) if wholes is None else np.asarray(wholes, dtype=np.float64)
    number = len(part_N)
    if number == 0 or not whole_N.sum():
        return Figure(float("nan"), float("nan"), float("nan"), number, chance)
    generator = np.random.default_rng(seed)
    drawn, at_once = [], max(1, AT_ONCE // number)
    for done in range(0, DRAWS, at_once):
        item_RN = generator.integers(number, size=(min(at_once, DRAWS - done), number))
        drawn.append((part_N[item_RN].sum(1), whole_N[item_RN].sum(1)))
    part_R, whole_R = np.concatenate(drawn, axis=1)
    ratio_R = transform(part_R[whole_R > 0] / whole_R[whole_R > 0])
    value = transform(np.array([part_N.sum() / whole_N.sum()]))[0]
    return Figure(float(value), *_interval(ratio_R), number, chance)


def drawn_figure(statistic: Callable[[Ints], float], number: int, *, chance: float | None = None) -> Figure:
    """`statistic` of the N items, by indices into them; they are drawn anew, so an item may come twice."""
    generator = np.random.default_rng(0)
    values_R = np.array([statistic(generator.integers(number, size=number)) for _ in range(DRAWS)])
    return Figure(float(statistic(np.arange(number))), *_interval(values_R[np.isfinite(values_R)]), number, chance)


def halved_figure(statistic: Callable[[Ints], float], number: int, *, chance: float | None = None) -> Figure:
    """The same for a statistic that an item coming twice would falsify (distances between items, ranks of matrices).

    Halves of the items without repetition scatter around each other as much as all items do around the truth (the
    delete-half jackknife; Shao and Wu, 1989); what the smaller number itself changes is left out.
    """
    value = float(statistic(np.arange(number)))
    if number < 4:
        return Figure(value, float("nan"), float("nan"), number, chance)
    generator = np.random.default_rng(0)
    values_R = np.array([statistic(generator.permutation(number)[: number // 2]) for _ in range(HALVES)])
    low, high = _interval(values_R - values_R.mean())
    return Figure(value, value + low, value + high, number, chance)


def _interval(values_R: Floats) -> tuple[float, float]:
    if len(values_R) == 0:
        return float("nan"), float("nan")
    low, high = np.quantile(values_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
