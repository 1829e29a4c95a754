"""Targets scored by the head of a model: apart from it, in pieces, or from its logits where that cannot be.

Shape suffixes: N positions, H width, V vocabulary.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sslnlp.heads import Head
from sslnlp.objectives.functional import IGNORED, hits
from sslnlp.objectives.linear_cross_entropy import Scored, linear_cross_entropy


def by_head(
    head: Head,
    features_NH: Tensor,
    target_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    share_N: Tensor | None = None,
) -> Scored:
    """`linear_cross_entropy` of what a head's projection multiplies (`heads.scored_features`)."""
    weight_VH, bias_V = head.projection.weight, head.projection.bias
    return linear_cross_entropy(
        features_NH, weight_VH, bias_V, target_N, label_smoothing=label_smoothing, share_N=share_N
    )


def by_logits(
    logits_NV: Tensor, target_N: Tensor, *, label_smoothing: float = 0.0, share_N: Tensor | None = None
) -> Scored:
    """The same from logits, for a model whose head is not to be had apart from it."""
    losses_N = F.cross_entropy(
        logits_NV.float(), target_N, reduction="none", label_smoothing=label_smoothing, ignore_index=IGNORED
    )
    count = (target_N != IGNORED).sum()
    loss = losses_N.sum() / count.clamp(min=1) if share_N is None else (losses_N * share_N).sum()
    return Scored(loss, losses_N.detach(), hits(logits_NV, target_N), count)
