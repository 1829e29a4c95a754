"""Measures of a latent space: whether the posteriors of a variational autoencoder say anything about their texts.

Shape suffixes: N documents, M of them whose posteriors are compared, Z latent dimensions.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping

import torch
from torch import Tensor

log = logging.getLogger(__name__)

ACTIVE = 0.01
"""Variance of E[z|x] over documents above which a dimension counts as active (Burda et al., 2016)."""

COMPARED = 2048
"""Documents that the mutual information is estimated from, at most: the work grows with their square."""


def latent_measures(predicted: Mapping[str, Tensor]) -> dict[str, float]:
    """Of the Gaussian posteriors `mean`, `log_variance` [N, Z] of held-out documents:

    `active_units`: dimensions whose mean varies from document to document, Var_x(E[z|x]) > 0.01 (Burda et al., 2016,
    arXiv:1509.00519). `mutual_information` of document and z in nats, E KL(q(z|x) from q(z)) with q(z) the mixture of
    the posteriors (Hoffman and Johnson, 2016); from a sample of N documents it cannot exceed ln N. `collapsed`: 1 when
    no unit is active, which is also logged. Empty for a single document, which differs from no other.
    """
    mean_NZ, logvar_NZ = predicted["mean"].double(), predicted["log_variance"].double()
    if len(mean_NZ) < 2:
        return {}
    active = int((mean_NZ.var(0, correction=0) > ACTIVE).sum())
    if active == 0:
        log.warning(
            "the posterior has collapsed: no latent dimension differs between documents, so the decoder writes without "
            "them; raise objective.free_bits or objective.word_dropout, lower objective.beta, or train longer"
        )
    return {
        "active_units": float(active),
        "mutual_information": mutual_information(mean_NZ, logvar_NZ),
        "collapsed": float(active == 0),
    }


def mutual_information(mean_NZ: Tensor, logvar_NZ: Tensor, *, seed: int = 0) -> float:
    """Monte-Carlo estimate in nats, from one draw of each of at most `COMPARED` evenly spaced documents."""
    index_M = torch.linspace(0, len(mean_NZ) - 1, min(len(mean_NZ), COMPARED)).round().long()
    mean_MZ, logvar_MZ = mean_NZ[index_M], logvar_NZ[index_M]
    noise_MZ = torch.randn(mean_MZ.shape, generator=torch.Generator().manual_seed(seed), dtype=mean_MZ.dtype)
    draw_MZ = mean_MZ + (logvar_MZ / 2).exp() * noise_MZ
    # log q(z_i|x_j) without the constant, expanded into products so that no [M, M, Z] is made.
    precision_MZ = (-logvar_MZ).exp()
    square_MM = (
        draw_MZ.square() @ precision_MZ.T
        - 2 * draw_MZ @ (mean_MZ * precision_MZ).T
        + (mean_MZ.square() * precision_MZ).sum(1)
    )
    density_MM = -(square_MM + logvar_MZ.sum(1)) / 2
    mixture_M = density_MM.logsumexp(1) - math.log(len(index_M))
    return float((density_MM.diagonal() - mixture_M).mean())
