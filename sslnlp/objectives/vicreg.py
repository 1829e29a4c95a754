"""Variance, invariance, covariance: views agree, every feature varies, and no two vary together."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import Unpack

from sslnlp.errors import UserError
from sslnlp.objectives import functional
from sslnlp.objectives.barlow_twins import Projected
from sslnlp.objectives.embedding import SharedOptions


class VICReg(Projected):
    """VICReg (Bardes et al., 2022, arXiv:2105.04906): `invariance × mean squared difference of the views + variance ×
    what the standard deviation of a feature lacks to 1 + covariance × squared covariances of different features`.

    The variance term is what keeps all vectors from becoming one; at 0 they do. As for `barlow_twins`, the batch is
    taken as a whole over all processes, the projector is not exported, and splitting a batch changes the loss.

    Metrics: those of `Embedding`; `compared_spread` is that of the projections, which the variance term drives to 1.

    Options besides those of `Embedding`:
        projector: its width, hidden and out; None: four times the model's.
        invariance, variance, covariance: weights of the terms.
    """

    name: ClassVar[str] = "vicreg"

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        projector: int | None = None,
        invariance: float = 25.0,
        variance: float = 25.0,
        covariance: float = 1.0,
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(model, projector_width=projector, **shared)
        self.weights = {"invariance": invariance, "variance": variance, "covariance": covariance}
        for name, weight in self.weights.items():
            if weight < 0:
                raise UserError(f"objective.{name}={weight} must not be negative")

    def compare(self, a_MZ: Tensor, b_MZ: Tensor) -> Tensor:
        terms = functional.vicreg(a_MZ, b_MZ)
        return sum((w * t for w, t in zip(self.weights.values(), terms, strict=True)), a_MZ.new_zeros(()))
