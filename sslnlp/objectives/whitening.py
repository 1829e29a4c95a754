"""What all texts share taken out of their vectors: a linear map behind the pooling, fitted before the first update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslnlp.errors import UserError
from sslnlp.objectives import functional
from sslnlp.types import LinearMap

EXPONENTS = (0.0, 0.25, 0.5)
"""Those that are tried where none is given."""
PAIRS = 1000
"""Pairs that a map is fitted to: of H = 384, some five texts for each direction."""
_FLOOR = 0.1
"""Of the mean variance, added to that of every direction: in the least ones there is more noise than text."""
_FEWEST = 32
"""Pairs below which nothing is fitted."""


class Whitening(nn.Module):
    """Vectors [..., H] -> [..., H]: less their mean, every direction divided by a power of its variance.

    A model that learnt to fill gaps puts all texts beside each other: most of a vector is what all texts share, and the
    directions in which they differ most say what kind of text it is, not what it says. So rescaled, vectors of such a
    model compare far better (Mu and Viswanath, 2018, arXiv:1702.01417; Su et al., 2021, arXiv:2103.15316). The map is
    the symmetric one (ZCA), of all whiteners the one that changes the vectors least (Kessy et al., 2018,
    arXiv:1512.00809), has a mean length of 1 for what it was fitted to, and does not train. The identity until fitted.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(width))
        self.register_buffer("bias", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # a difference of near equals: 8 bits would not tell it
            kind = torch.promote_types(x.dtype, torch.float32)
            return F.linear(x.to(kind), self.weight.to(kind), self.bias.to(kind))

    @classmethod
    def of(cls, found: LinearMap) -> Whitening:
        """One that is fitted already."""
        made = cls(1)
        made.weight, made.bias = (x.detach().clone() for x in found)
        return made

    @torch.no_grad()
    def set(self, found: LinearMap) -> None:
        self.weight.copy_(found.weight)
        self.bias.copy_(found.bias)

    @property
    def map(self) -> LinearMap | None:
        """None where it is the identity."""
        untouched = self.weight.new_ones(len(self.bias)).diag()
        same = not self.bias.any() and torch.equal(self.weight, untouched)
        return None if same else LinearMap(self.weight, self.bias)


def check_exponent(exponent: float | None) -> None:
    if exponent is not None and not 0 <= exponent <= 0.5:
        raise UserError(f"objective.whitening={exponent} is an exponent from 0 (none) to 0.5 (all directions alike)")


def whitener(vector_NH: Tensor, exponent: float) -> LinearMap:
    """The map for vectors like these: every direction divided by its variance to the power of `exponent`."""
    x = vector_NH.double().cpu()
    mean_H = x.mean(0)
    variance_H, direction_HH = torch.linalg.eigh((x - mean_H).T @ (x - mean_H) / len(x))
    variance_H = variance_H.clamp(min=0)
    scale_H = (variance_H + _FLOOR * variance_H.mean()).clamp(min=1e-12) ** -exponent
    weight_HH = (direction_HH * scale_H) @ direction_HH.T
    weight_HH /= ((x - mean_H) @ weight_HH).norm(dim=1).mean().clamp(min=1e-12)
    return LinearMap(weight_HH.float(), -(weight_HH @ mean_H).float())


class Pairs(NamedTuple):
    """Pooled vectors [N, H] of queries and of their documents, and hashes [N] of the texts of both."""

    queries: Tensor
    documents: Tensor
    asked: Tensor
    told: Tensor

    def part(self, start: int) -> Pairs:
        """Every other one."""
        return Pairs(*(x[start::2].contiguous() for x in self))

    @property
    def vectors(self) -> Tensor:
        return torch.cat([self.queries, self.documents])


def fitted(pairs: Pairs, exponents: Sequence[float]) -> tuple[LinearMap | None, float]:
    """The map for pooled vectors like these, and its exponent: that with which queries find their documents best.

    Of several exponents each is fitted to every other pair and judged on the rest by the mean reciprocal rank; another
    than the first is taken where its gain over that is twice its standard error. None: the vectors stay as they are.
    """
    pairs = Pairs(*(x.cpu() for x in pairs))
    if len(pairs.queries) < _FEWEST:
        return None, 0.0
    best = exponents[0]
    if len(exponents) > 1:
        learnt, judged = pairs.part(0).vectors, pairs.part(1)
        maps = {exponent: whitener(learnt, exponent) if exponent else None for exponent in exponents}
        found = {exponent: _reciprocal_ranks(judged, through) for exponent, through in maps.items()}
        highest = max(found, key=lambda exponent: float(found[exponent].mean()))
        gain_N = found[highest] - found[best]
        if gain_N.mean() > 2 * gain_N.std() / len(gain_N) ** 0.5:
            best = highest
    return (whitener(pairs.vectors, best) if best else None), best


def _reciprocal_ranks(pairs: Pairs, through: LinearMap | None) -> Tensor:
    """[N]: of each query's own document among all, those left out that a pair says are relevant to it too."""
    query_NH, document_NH, asked_N, text_N = pairs
    if through is not None:
        query_NH, document_NH = (F.linear(x.float(), through.weight, through.bias) for x in (query_NH, document_NH))
    cosine_NN = functional.unit(query_NH) @ functional.unit(document_NH).T
    others_NN = ~functional.relevant_pairs(asked_N, text_N, asked_N, text_N)
    return 1 / (1 + (others_NN & (cosine_NN >= cosine_NN.diagonal()[:, None])).sum(1))
