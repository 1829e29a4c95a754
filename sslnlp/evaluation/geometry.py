"""How the vectors of texts lie in their space, without any labels.

Shapes: N texts, H width of a vector.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sslnlp.arrays import Ints, Vectors
from sslnlp.errors import UserError
from sslnlp.evaluation.bootstrap import Figure, halved_figure, ratio_figure
from sslnlp.evaluation.local import VECTOR_PAIRS, LocalMetric
from sslnlp.objectives import functional


def geometry_measures(vectors_NH: Vectors, other_NH: Vectors | None = None) -> dict[str, Figure]:
    """Of vectors of N different texts and, if given, of a second view of each (its other half):

    `effective_rank`: how many directions are used (Roy and Vetterli, 2007), 1 to min(N, H). `anisotropy`: the mean
    cosine of two different texts (Ethayarajh, 2019, arXiv:1909.00512), 0 when directions are even, 1 when all are one.
    `uniformity` and, with a second view, `alignment` (Wang and Isola, 2020, arXiv:2005.10242); both are better lower.
    Lengths do not count. Raises `UserError` for less than two texts.
    """
    if len(vectors_NH) < 2:
        raise UserError(f"the geometry of {len(vectors_NH)} vectors says nothing; give at least two texts")
    unit_NH = _unit(vectors_NH)

    def rank(index: Ints) -> float:
        return float(functional.effective_rank(unit_NH[index]))

    def anisotropy(index: Ints) -> float:
        total = float(unit_NH[index].sum(0).square().sum())
        return (total - len(index)) / (len(index) * (len(index) - 1))

    def uniformity(index: Ints) -> float:
        return float(functional.uniformity(unit_NH[index]))

    number = len(unit_NH)
    found = {
        "effective_rank": halved_figure(rank, number),
        "anisotropy": halved_figure(anisotropy, number, chance=0.0),
        "uniformity": halved_figure(uniformity, number, chance=0.0),
    }
    if other_NH is not None:
        distance_N = (unit_NH - _unit(other_NH)).square().sum(-1).numpy()
        found["alignment"] = ratio_figure(distance_N, chance=2.0)
    return found


def _unit(vectors_NH: Vectors) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(vectors_NH, dtype=np.float64)), dim=-1)


class Geometry(LocalMetric):
    """`effective_rank`, `anisotropy` and `uniformity` of `predictions`, a vector a text; `alignment` with `references`,
    the vectors of the texts' second views."""

    describes = "How vectors lie in their space: effective rank, anisotropy, uniformity, alignment of two views."
    features_of = VECTOR_PAIRS

    def _compute(
        self, predictions: Sequence[Sequence[float]], references: Sequence[Sequence[float]]
    ) -> dict[str, float]:
        figures = geometry_measures(np.asarray(predictions, np.float32), np.asarray(references, np.float32))
        return {name: figure.value for name, figure in figures.items()}
