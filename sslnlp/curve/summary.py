"""Many runs as one figure: a mean over draws with its interval, and which runs failed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from sslnlp.curve.cells import Measured

FAR = 6.0
"""Median absolute deviations below the median from which a run is called failed; a normal one is there once in 10^4."""
LEAST = 0.05
"""Nor is a run called failed that is less than this below the median."""


@dataclass(frozen=True)
class Summary:
    """A figure of one method with one number of labels."""

    mean: float
    low: float
    high: float
    """The 95 % interval of the mean over draws (Student's t; over seeds, where there is one draw); NaN of one run."""
    draws: int
    runs: int
    failed: tuple[str, ...]
    """The runs without a figure, or far below the others; the latter are in the mean."""


def summarise(found: Sequence[Measured], figure: str) -> Summary | None:
    """The runs of one method; None where none has the figure."""
    values = {m.cell: m.measures[figure] for m in found if figure in m.measures}
    if not values:
        return None
    by_draw: dict[int, list[float]] = defaultdict(list)
    for cell, value in values.items():
        by_draw[cell.draw].append(value)
    # Seeds of one draw share its texts, so draws are what repeats; with one draw only its seeds do.
    units = [float(np.mean(group)) for group in by_draw.values()] if len(by_draw) > 1 else [*values.values()]
    mean = float(np.mean(units))
    half = math.nan
    if len(units) > 1:
        half = float(stats.t.ppf(0.975, len(units) - 1) * np.std(units, ddof=1) / math.sqrt(len(units)))
    lost = tuple(f"{m.cell.name}: {m.error}" for m in found if m.error is not None)
    return Summary(mean, mean - half, mean + half, len(by_draw), len(values), lost + _outliers(found, figure))


def _outliers(found: Sequence[Measured], figure: str) -> tuple[str, ...]:
    runs = [m for m in found if figure in m.measures]
    values = np.array([m.measures[figure] for m in runs])
    middle = np.median(values)
    spread = FAR * float(np.median(np.abs(values - middle)))
    low = middle - max(spread, LEAST)
    if len(values) < 4:
        return ()
    return tuple(f"{m.cell.name}: {figure} {m.measures[figure]:.3f}" for m in runs if m.measures[figure] < low)
