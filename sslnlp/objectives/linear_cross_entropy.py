"""Cross-entropy from features and the matrix of the vocabulary, without the logits of all positions at once.

Idea: Wijmans et al. (2024), "Cut your losses in large-vocabulary language models", here with PyTorch's own products:
the logits of a few hundred positions at a time are made, scored and turned into their gradient while they are in the
cache, in the forward pass.

Shape suffixes: N positions, C positions of a chunk, P positions of a panel of chunks, H width, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sslnlp.objectives.functional import IGNORED

CHUNK = {"cpu": 2**21, "cuda": 2**28}
"""Logits made at a time: on a CPU 8 MiB in float32, which the last-level cache holds; on a GPU enough to fill it."""

PANEL = {"cpu": 2**25, "cuda": 2**28}
"""Gradients of logits kept until they are multiplied into the gradient of the matrix, 64 MiB in bf16: that sum is
read and written once a panel."""


def linear_cross_entropy(
    features_NH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, target_N: Tensor, *, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Mean cross-entropy in nats over the scored targets, of the logits `features @ weight.T + bias`.

    The same as `functional.cross_entropy` and `functional.accuracy` of the whole logits: products in the autocast type
    where that is on, everything after them in float32. The loss can be differentiated once.

    Args:
        features_NH: what the head multiplies with the vocabulary, [N, H].
        weight_VH: [V, H], tied or not.
        bias_V: [V] or None.
        target_N: int64 [N]; -100 is not scored.
        label_smoothing: share of the target mass spread over the vocabulary.

    Returns:
        The loss (0 when nothing is scored) and the share of scored targets that have the highest logit (detached).
    """
    kind = features_NH.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features_NH.dtype
    with torch.autocast(kind, enabled=False):
        total, hits = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            features_NH.to(dtype), weight_VH, bias_V, target_N, label_smoothing, torch.is_grad_enabled()
        )
        count = (target_N != IGNORED).sum().clamp(min=1)
        return total / count, hits / count


def _rows(limit: dict[str, int], tensor: Tensor, vocabulary: int) -> int:
    return max(1, limit.get(tensor.device.type, limit["cuda"]) // vocabulary)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        features_NH: Tensor,
        weight_VH: Tensor,
        bias_V: Tensor | None,
        target_N: Tensor,
        smoothing: float,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor]:
        dtype = features_NH.dtype
        w_VH, b_V = weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
        vocabulary = len(w_VH)
        scored_N1 = (target_N != IGNORED)[:, None]
        total = torch.zeros((), dtype=torch.float32, device=features_NH.device)
        hits = torch.zeros_like(total)
        d_features_NH = torch.empty_like(features_NH) if differentiate else None
        d_weight_VH = torch.zeros_like(w_VH, dtype=torch.float32) if differentiate else None
        d_bias_V = torch.zeros_like(b_V, dtype=torch.float32) if differentiate and b_V is not None else None
        chunk, panel = (_rows(limit, features_NH, vocabulary) for limit in (CHUNK, PANEL))
        for start in range(0, len(target_N), panel):
            part = slice(start, min(start + panel, len(target_N)))
            d_logits_PV = features_NH.new_empty(part.stop - start, vocabulary) if differentiate else None
            for place in range(start, part.stop, chunk):
                own = slice(place, min(place + chunk, part.stop))
                gradient_CV, losses_C, hits_C = _score(
                    F.linear(features_NH[own], w_VH, b_V), target_N[own].clamp(min=0)[:, None], smoothing
                )
                total += (losses_C * scored_N1[own, 0]).sum()
                hits += (hits_C & scored_N1[own, 0]).sum()
                if d_logits_PV is not None and d_features_NH is not None:
                    d_logits_CV = d_logits_PV[own.start - start : own.stop - start]
                    d_logits_CV.copy_(gradient_CV)
                    torch.mm(d_logits_CV, w_VH, out=d_features_NH[own])
            if d_logits_PV is not None and d_weight_VH is not None:
                # What is not scored is left out here, on H numbers a position, not on V.
                seen_PH = features_NH[part] * scored_N1[part]
                if dtype == torch.float32:
                    d_weight_VH.addmm_(d_logits_PV.T, seen_PH)
                else:
                    d_weight_VH += d_logits_PV.T @ seen_PH
                if d_bias_V is not None:
                    d_bias_V += (scored_N1[part].to(dtype).T @ d_logits_PV)[0]
        if d_features_NH is not None:
            d_features_NH *= scored_N1
        ctx.types = weight_VH.dtype, None if bias_V is None else bias_V.dtype
        ctx.save_for_backward(d_features_NH, d_weight_VH, d_bias_V)
        ctx.mark_non_differentiable(hits)
        return total, hits

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0]
        d_features_NH, d_weight_VH, d_bias_V = ctx.saved_tensors
        weight_type, bias_type = ctx.types
        return (
            d_features_NH * scale.to(d_features_NH.dtype),
            (d_weight_VH * scale).to(weight_type),
            None if d_bias_V is None else (d_bias_V * scale).to(bias_type),
            None,
            None,
            None,
        )


def _score(logits_CV: Tensor, target_C1: Tensor, smoothing: float) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the summed losses by the logits [C, V], the losses [C] and whether the target is highest [C]."""
    chance_CV = logits_CV.softmax(-1, dtype=torch.float32)
    # The largest probability is at least 1 / V, so its logarithm is exact where that of a target's could be -inf.
    top_C1, best_C1 = chance_CV.max(-1, keepdim=True)
    log_sum_C1 = logits_CV.gather(1, best_C1).float() - top_C1.log()
    losses_C1 = log_sum_C1 - (1 - smoothing) * logits_CV.gather(1, target_C1).float()
    if smoothing:
        losses_C1 = losses_C1 - smoothing * logits_CV.mean(-1, keepdim=True, dtype=torch.float32)
        chance_CV -= smoothing / logits_CV.shape[1]
    chance_CV.scatter_add_(1, target_C1, torch.full_like(top_C1, smoothing - 1))
    return chance_CV, losses_C1[:, 0], (best_C1 == target_C1)[:, 0]
