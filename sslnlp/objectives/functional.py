"""The maths of the objectives: functions of tensors, with no model, tokenizer or process rank in them.

Shapes of the contrastive losses: Q = queries, D = documents, P = pairs, H = width of a vector, T = hashes of a text,
K = the documents a teacher scored for a query, its relevant one first;
of the others: N = texts, each seen in two views.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def info_nce(
    query_QH: Tensor,
    document_DH: Tensor,
    target_Q: Tensor,
    *,
    temperature: float | Tensor,
    excluded_QD: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE (van den Oord et al., 2018, arXiv:1807.03748): cross-entropy of naming the relevant document.

    `-log(exp(s_qt / temperature) / sum_d exp(s_qd / temperature))`, s the dot product (the cosine, for normalised
    vectors), averaged over the queries; 0 (with a gradient path) when there are none.

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
    similarity_QD = dot_products(query_QH, document_DH)
    return contrasted(similarity_QD, target_Q, temperature=temperature, excluded_QD=excluded_QD)


def contrasted(
    similarity_QD: Tensor, target_Q: Tensor, *, temperature: float | Tensor, excluded_QD: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`info_nce` of any similarities [Q, D]."""
    # The mask comes after the temperature: the slope of -inf in a temperature that learns would be NaN.
    logits_QD = similarity_QD / temperature
    similarity_QD = similarity_QD.detach()
    if excluded_QD is not None:
        own_QD = torch.zeros_like(excluded_QD).scatter_(1, target_Q[:, None], True)
        out_QD = excluded_QD & ~own_QD
        logits_QD, similarity_QD = (x.masked_fill(out_QD, float("-inf")) for x in (logits_QD, similarity_QD))
    total = F.cross_entropy(logits_QD, target_Q, reduction="sum")
    return total / max(1, len(target_Q)), similarity_QD


def nearest_own(similarity_QD: Tensor, target_Q: Tensor) -> Tensor:
    """bool [Q]: a query's own document is the nearest of all. A tie is not: collapsed vectors score 0."""
    return (similarity_QD >= similarity_QD.gather(1, target_Q[:, None])).sum(1) == 1


def first_among(similarity_QD: Tensor, target_Q: Tensor) -> dict[str, Tensor]:
    """Of what `info_nce` returns: `accuracy`, the share of the queries whose own document is the nearest of all, and
    `positive_similarity`, their mean similarity with it."""
    accuracy = nearest_own(similarity_QD, target_Q).float().mean()
    return {"accuracy": accuracy, "positive_similarity": similarity_QD.gather(1, target_Q[:, None]).mean()}


def dot_products(query_QH: Tensor, document_DH: Tensor) -> Tensor:
    """Every query with every document, [Q, D], in float32 under autocast too: a cosine in bf16 is known to 0.004 at
    most, which a temperature of 0.05 makes 0.08 nats of a logit."""
    with torch.autocast(query_QH.device.type, enabled=False):
        kind = torch.promote_types(torch.promote_types(query_QH.dtype, document_DH.dtype), torch.float32)
        return query_QH.to(kind) @ document_DH.to(kind).T


def relevant_pairs(query_Q: Tensor, document_D: Tensor, pair_query_P: Tensor, pair_document_P: Tensor) -> Tensor:
    """Which document is known to be relevant to which query, judged by equal texts: bool [Q, D].

    All arguments are int64 hashes of texts. A document is relevant to a query when some of the P known pairs joins a
    query of the same text with a document of the same text. Besides a query's own document such a candidate would be
    a false negative.
    """
    # Texts are numbered by where they stand among the sorted queries, and among the sorted documents of the pairs: no
    # product over all pairs, and where few queries are asked no matrix of all pairs with all.
    asked_Q, text_P = query_Q.sort().values, pair_document_P.sort().values
    joined_QP = torch.zeros(len(asked_Q) + 1, len(text_P) + 1, dtype=torch.bool, device=query_Q.device)
    joined_QP[_place(asked_Q, pair_query_P), torch.searchsorted(text_P, pair_document_P)] = True
    return joined_QP[_place(asked_Q, query_Q)][:, _place(text_P, document_D)]


def _place(sorted_K: Tensor, value_N: Tensor) -> Tensor:
    """The first place of each value among the K sorted ones; K of a value that is not there."""
    place_N = torch.searchsorted(sorted_K, value_N)
    if len(sorted_K) == 0:
        return place_N
    there_N = sorted_K[place_N.clamp(max=len(sorted_K) - 1)] == value_N
    return torch.where(there_N, place_N, len(sorted_K))


def false_negatives(query_QT: Tensor, document_DT: Tensor, pair_query_PT: Tensor, pair_document_PT: Tensor) -> Tensor:
    """Which candidates are no negatives of a query: bool [Q, D].

    All arguments are int64 hashes, T kinds a text (of what it was made of, of what is read). By any kind: the
    candidate is the query's own text, or `relevant_pairs` joins the two.
    """
    found = torch.zeros(len(query_QT), len(document_DT), dtype=torch.bool, device=query_QT.device)
    kinds = (x.T.contiguous() for x in (query_QT, document_DT, pair_query_PT, pair_document_PT))
    for query_Q, document_D, pair_query_P, pair_document_P in zip(*kinds, strict=True):
        found |= query_Q[:, None] == document_D
        found |= relevant_pairs(query_Q, document_D, pair_query_P, pair_document_P)
    return found


def margin_mse(logits_QK: Tensor, teacher_QK: Tensor) -> Tensor:
    """MarginMSE (Hofstätter et al., 2020, arXiv:2010.02666): how far the relevant document leads each other one.

    `((s_0 - s_k) - (t_0 - t_k))²`, averaged over the queries and k = 1 .. K-1; 0 (with a gradient path) without any.
    Only differences count: both scores may have any offset, but they must have the same unit.
    """
    margin_QK, wanted_QK = (x[:, :1] - x[:, 1:] for x in (logits_QK, teacher_QK))
    return (margin_QK - wanted_QK).square().sum() / max(1, margin_QK.numel())


def listwise_kl(logits_QK: Tensor, teacher_QK: Tensor) -> Tensor:
    """KL(teacher ‖ student) in nats between the softmaxes over a query's K documents, averaged over the queries.

    As ColBERTv2 and RocketQAv2 distil (Santhanam et al., 2022, arXiv:2112.01488; Ren et al., 2021, arXiv:2110.07367).
    0 where both give the same shares, whatever their offsets; 0 (with a gradient path) without queries.
    """
    total = F.kl_div(logits_QK.log_softmax(-1), teacher_QK.log_softmax(-1), reduction="sum", log_target=True)
    return total / max(1, len(logits_QK))


def supervised_contrastive(
    vector_NH: Tensor, other_MH: Tensor, class_N: Tensor, class_M: Tensor, own_N: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    """Supervised contrastive loss (Khosla et al., 2020, arXiv:2004.11362, L_out) and how often the nearest is right.

    Each of N vectors of length 1 names the others of its class among M, itself (`own_N` int64 [N], its place among
    them) left out: the mean of `-log softmax` over those of its class. A vector without another of its class counts 0.

    Returns:
        The mean over N (scalar), and the share of the N whose nearest other is of their class.
    """
    similarity_NM = dot_products(vector_NH, other_MH) / temperature
    itself_NM = torch.zeros_like(similarity_NM, dtype=torch.bool).scatter_(1, own_N[:, None], True)
    similarity_NM = similarity_NM.masked_fill(itself_NM, float("-inf"))
    same_NM = (class_N[:, None] == class_M) & ~itself_NM
    log_share_NM = (similarity_NM - similarity_NM.logsumexp(1, keepdim=True)).masked_fill(~same_NM, 0.0)
    loss_N = -log_share_NM.sum(1) / same_NM.sum(1).clamp(min=1)
    nearest_N = same_NM.gather(1, similarity_NM.detach().argmax(1, keepdim=True))
    return loss_N.sum() / max(1, len(loss_N)), nearest_N.float().mean()


def unit(vectors: Tensor) -> Tensor:
    """Vectors [..., H] at length 1, in float32 or wider."""
    return F.normalize(vectors.to(torch.promote_types(vectors.dtype, torch.float32)), dim=-1)


def cosine_distance(a_NH: Tensor, b_NH: Tensor) -> Tensor:
    """`2 - 2 cos`, averaged over the rows: the squared distance of the vectors at length 1 (Grill et al., 2020, BYOL,
    arXiv:2006.07733). 0 for equal directions, 4 for opposite ones; 0 (with a gradient path) without rows. In float32 at
    least: below it a cosine near 1 is known to 0.004, which is as much as the loss falls to."""
    cosine_N = (unit(a_NH) * unit(b_NH)).sum(-1)
    return (2 - 2 * cosine_N).sum() / max(1, len(cosine_N))


def barlow_twins(a_NH: Tensor, b_NH: Tensor, *, off_diagonal: float) -> Tensor:
    """Barlow Twins (Zbontar et al., 2021, arXiv:2103.03230): the cross-correlation of the views should be the identity.

    `sum_i (1 - C_ii)² + off_diagonal × sum_{i != j} C_ij²`, C [H, H] the correlation over the rows of feature i of
    one view with feature j of the other. A feature that does not vary correlates with nothing: a single row gives H.
    """
    correlation_HH = _standardised(a_NH).T @ _standardised(b_NH) / max(1, len(a_NH))
    diagonal_H = correlation_HH.diagonal()
    rest = correlation_HH.square().sum() - diagonal_H.square().sum()
    return (1 - diagonal_H).square().sum() + off_diagonal * rest


def _standardised(x_NH: Tensor) -> Tensor:
    """Mean 0 and variance 1 over the rows; 0 where a feature does not vary."""
    centred_NH = x_NH - x_NH.sum(0) / max(1, len(x_NH))
    variance_H = centred_NH.square().sum(0) / max(1, len(x_NH))
    return centred_NH * (variance_H + 1e-12).rsqrt()


def vicreg(a_NH: Tensor, b_NH: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of VICReg (Bardes et al., 2022, arXiv:2105.04906), before their weights.

    Invariance, the mean squared difference of the views; variance, the mean over features and views of `max(0, 1 -
    standard deviation)`; covariance, the sum over both views of the squared covariances of different features, over H.
    A single row has no variance (term 0.99: its deviation counts as sqrt(1e-4)) and no covariance.
    """
    invariance = (a_NH - b_NH).square().sum() / max(1, a_NH.numel())
    variance, covariance = invariance.new_zeros(()), invariance.new_zeros(())
    for x_NH in (a_NH, b_NH):
        centred_NH = x_NH - x_NH.sum(0) / max(1, len(x_NH))
        covariance_HH = centred_NH.T @ centred_NH / max(1, len(x_NH) - 1)
        variance_H = covariance_HH.diagonal()
        # As published, a little is added inside the root: its slope at 0 is infinite.
        variance = variance + F.relu(1 - (variance_H + 1e-4).sqrt()).mean() / 2
        covariance = covariance + (covariance_HH.square().sum() - variance_H.square().sum()) / x_NH.shape[1]
    return invariance, variance, covariance


def effective_rank(x_NH: Tensor) -> Tensor:
    """How many directions the rows use: exp of the entropy of the singular values as shares of their sum (Roy and
    Vetterli, 2007). 1 when all rows point the same way, at most min(N, H); 0 for nothing but zeros; NaN for rows that
    are not finite."""
    # In float64: singular values are roots, so the rounding of a float32 product would look like further directions.
    x = x_NH.double()
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x
    finite = gram.isfinite().all()  # else the decomposition raises, before the loop can tell of the gradient
    singular = torch.linalg.eigvalsh(torch.where(finite, gram, 0.0)).clamp(min=0).sqrt()
    share = singular / singular.sum().clamp(min=1e-30)
    rank = torch.special.entr(share).sum().exp()
    rank = torch.where(singular.sum() > 0, rank, 0.0)
    return torch.where(finite, rank, math.nan).to(x_NH.dtype)


def spread(x_NH: Tensor) -> Tensor:
    """The standard deviation of a feature over the rows, averaged over the features."""
    return x_NH.std(0, correction=0).mean()


def alignment(a_NH: Tensor, b_NH: Tensor) -> Tensor:
    """Mean squared distance of the two views of a text, vectors of length 1 (Wang and Isola, 2020, arXiv:2005.10242).
    0 when they agree; lower is better."""
    return (a_NH - b_NH).square().sum(-1).mean()


def uniformity(x_NH: Tensor) -> Tensor:
    """`log mean exp(-2 |x - y|²)` over pairs of different rows, vectors of length 1 (Wang and Isola, 2020): 0 when all
    are one, about -4 when they are spread evenly; lower is better."""
    squared = torch.pdist(x_NH).square()
    return (-2 * squared).logsumexp(0) - math.log(max(1, len(squared)))


IGNORED = -100
"""The target of a position that is not scored, as in `transformers`."""


def cross_entropy(logits_NV: Tensor, target_N: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats over the scored targets, in float32; 0 (with a gradient path) when there are none."""
    total = F.cross_entropy(
        logits_NV.float(), target_N, reduction="sum", label_smoothing=label_smoothing, ignore_index=IGNORED
    )
    return total / (target_N != IGNORED).sum().clamp(min=1)


def row_count(x: Tensor) -> Tensor:
    """How many rows `x` has, where it is: int64, a scalar. Known from the shape: no look at the values, no wait for the
    device."""
    return torch.full((), len(x), device=x.device)


def hits(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """bool [N]: whether the target has the highest logit, detached; false where the target is -100."""
    # In bf16 argmax takes six times as long on a CPU as in float32.
    return logits_NV.detach().float().argmax(-1) == target_N


def accuracy(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """Share of the scored targets that have the highest logit, detached; 0 when there are none."""
    return hits(logits_NV, target_N).float().sum() / (target_N != IGNORED).sum().clamp(min=1)


def sum_and_count(values: Tensor, chosen: Tensor) -> Tensor:
    """A figure with a denominator of its own, [2]: the sum of the chosen values, and how many they are."""
    return torch.stack([(values * chosen).sum(), chosen.sum()])


def ranked_probability_score(logits_NC: Tensor, target_N: Tensor) -> Tensor:
    """The ranked probability score of each row [N] over ordered classes (Epstein, 1969).

    `sum_c (P(y <= c) - [t <= c])²`, P the cumulated softmax: 0 for a sure hit, the distance in classes for a sure miss;
    0 where the target is -100.
    """
    below_NC = torch.arange(logits_NC.shape[-1], device=logits_NC.device) >= target_N[:, None]
    score_N = (logits_NC.softmax(-1).cumsum(-1) - below_NC.to(logits_NC.dtype)).square().sum(-1)
    return score_N.masked_fill(target_N == IGNORED, 0.0)


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
