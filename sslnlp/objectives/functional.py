"""The maths of the objectives: functions of tensors, with no model, tokenizer or process rank in them.

Shapes of the contrastive losses: Q = queries, D = documents, P = pairs, H = width of a vector.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    query_QH: Tensor, document_DH: Tensor, target_Q: Tensor, *, temperature: float, excluded_QD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """InfoNCE (van den Oord et al., 2018, arXiv:1807.03748): cross-entropy of naming the relevant document.

    `-log(exp(s_qt / temperature) / sum_d exp(s_qd / temperature))`, s the dot product (the cosine, for normalised
    vectors), averaged over the queries.

    Args:
        query_QH: one vector a query, [Q, H].
        document_DH: the candidates every query is compared with, [D, H].
        target_Q: index into the D candidates of each query's relevant one, int64 [Q].
        temperature: above 0; small values weigh the hardest candidates most.
        excluded_QD: bool [Q, D], candidates left out of a query's sum (known false negatives). A query's own target
            stays in, whatever this says.

    Returns:
        The loss (scalar) and the similarities s [Q, D] with -inf where excluded (detached, before the temperature).
    """
    similarity_QD = query_QH @ document_DH.T
    if excluded_QD is not None:
        own_QD = torch.zeros_like(excluded_QD).scatter_(1, target_Q[:, None], True)
        similarity_QD = similarity_QD.masked_fill(excluded_QD & ~own_QD, float("-inf"))
    return F.cross_entropy(similarity_QD / temperature, target_Q), similarity_QD.detach()


def relevant_pairs(query_Q: Tensor, document_D: Tensor, pair_query_P: Tensor, pair_document_P: Tensor) -> Tensor:
    """Which document is known to be relevant to which query, judged by equal texts: bool [Q, D].

    All arguments are int64 hashes of texts. A document is relevant to a query when some of the P known pairs joins a
    query of the same text with a document of the same text. Besides a query's own document such a candidate would be
    a false negative.
    """
    asked_QP = query_Q[:, None] == pair_query_P[None, :]
    text_PD = pair_document_P[:, None] == document_D[None, :]
    return (asked_QP.float() @ text_PD.float()) > 0


IGNORED = -100
"""The target of a position that is not scored, as in `transformers`."""


def cross_entropy(logits_NV: Tensor, target_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over the scored targets, in float32; 0 (with a gradient path) when there are none."""
    total = F.cross_entropy(
        logits_NV.float(), target_N, reduction="sum", label_smoothing=label_smoothing, ignore_index=IGNORED
    )
    return total / (target_N != IGNORED).sum().clamp(min=1)


def accuracy(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Share of the scored targets that have the highest logit, detached; 0 when there are none."""
    # In bf16 argmax takes six times as long on a CPU as in float32.
    hits = (logits_NV.detach().float().argmax(-1) == target_N).float().sum()  # no logit has index -100
    return hits / (target_N != IGNORED).sum().clamp(min=1)


def gaussian_kl(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL of N(mean, variance) from N(0, 1) in nats, element by element: 0 where mean 0 meets variance 1."""
    return (mean.square() + log_variance.exp() - 1 - log_variance) / 2


def cyclic(progress: float, *, cycles: int, ramp: float) -> float:
    """A weight that rises from 0 to 1 in the first `ramp` share of each cycle and stays there for the rest of it.

    Fu et al. (2019, arXiv:1903.10145). `progress` in (0, 1] is cut into equal `cycles`, each closed at its end, so that
    the weight is 1 at progress 1. Ramp 0 is 1 throughout; one cycle is a single rise (Bowman et al., 2016).
    """
    place = progress * cycles
    place -= math.ceil(place) - 1
    return min(1.0, place / ramp) if ramp > 0 else 1.0
