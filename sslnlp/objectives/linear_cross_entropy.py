"""Cross-entropy from features and the matrix of the vocabulary, without the logits of all positions at once.

Idea: Wijmans et al. (2024), "Cut your losses in large-vocabulary language models", here with PyTorch's own products:
the logits of a few hundred positions at a time are made, scored and turned into their gradient while they are in the
cache, in the forward pass.

Shape suffixes: N positions, P positions of a panel of chunks, C positions of a chunk, B positions of a block of one,
H width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sslnlp.nn import rows_missing
from sslnlp.objectives.functional import IGNORED

CHUNK = {"cpu": 2**21, "cuda": 2**29}
"""Logits made at a time: on a CPU 8 MiB in float32, which the last-level cache holds; on a GPU enough to fill it."""

LEAST = {2: 128, 4: 256}
"""Positions of a chunk at least on a CPU, by the bytes of a logit: fewer read the matrix of a large vocabulary too
often. 1.3 times as fast as 64 positions at V 32,768 and width 768, in float32 (AVX2, 152 targets) and in bf16 (AMX,
608 targets)."""

BLOCK = 2**19
"""Logits scored at a time on a CPU: 2 MiB in float32, so that the passes over them stay in the second-level cache."""

PANEL = {"cpu": 2**25, "cuda": 2**29}
"""Gradients of logits kept until they are multiplied into the gradient of the matrix, 64 MiB in bf16 on a CPU: that sum
is read and written once a panel."""


class Scored(NamedTuple):
    """Targets scored by a head."""

    loss: Tensor
    """The mean of the losses over the scored targets, or, with shares, the sum of share × loss; 0 where none is scored.
    It can be differentiated once."""
    losses: Tensor
    """[N], nats of each target, float32 at least, detached; 0 where it is not scored."""
    hits: Tensor
    """bool [N], detached: the target is scored and has the highest logit."""
    number: Tensor
    """How many are scored, int64, scalar."""

    @property
    def accuracy(self) -> Tensor:
        """The share of the scored targets that have the highest logit."""
        return self.hits.sum() / self.number.clamp(min=1)


def linear_cross_entropy(
    features_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    *,
    label_smoothing: float = 0.0,
    share_N: Tensor | None = None,
) -> Scored:
    """Cross-entropy in nats of the logits `features @ weight.T + bias`.

    The same as `functional.cross_entropy` and `functional.accuracy` of the whole logits: products in the autocast type
    where that is on, everything after them in float32 (in float64 where the features are).

    Args:
        features_NH: what the head multiplies with the vocabulary, [N, H].
        weight_VH: [V, H], tied or not.
        bias_V: [V] or None.
        target_N: int64 [N]; -100 is not scored.
        label_smoothing: share of the target mass spread over the vocabulary.
        share_N: what each target counts in the loss, float32 [N], not differentiated; without, the same for all, of
            sum 1.
    """
    kind = features_NH.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else features_NH.dtype
    with torch.autocast(kind, enabled=False):
        total, losses_N, hits_N = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
            features_NH.to(dtype), weight_VH, bias_V, target_N, share_N, label_smoothing, torch.is_grad_enabled()
        )
        count = (target_N != IGNORED).sum()
        return Scored(total / count.clamp(min=1) if share_N is None else total, losses_N, hits_N, count)


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
        share_N: Tensor | None,
        smoothing: float,
        differentiate: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        compute: Any = torch.ops.sslnlp.linear_cross_entropy if torch.compiler.is_compiling() else _compute
        fused = torch.compiler.is_compiling() and features_NH.device.type == "cuda"
        trains = differentiate and any(ctx.needs_input_grad[1:3])  # a frozen head, as LoRA has, keeps no such gradient
        losses_N, hits_N, *gradients = compute(
            features_NH, weight_VH, bias_V, target_N, share_N, smoothing, differentiate, trains, fused
        )
        ctx.types = weight_VH.dtype, None if bias_V is None else bias_V.dtype
        ctx.trains = trains
        ctx.save_for_backward(*gradients)
        ctx.mark_non_differentiable(losses_N, hits_N)
        return (losses_N if share_N is None else losses_N * share_N).sum(), losses_N, hits_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError("linear_cross_entropy can be differentiated once: its gradient is made with the loss")
        scale = gradients[0]
        d_features_NH, d_weight_VH, d_bias_V = ctx.saved_tensors
        if not ctx.trains:
            return d_features_NH * scale.to(d_features_NH.dtype), *(None for _ in range(6))
        weight_type, bias_type = ctx.types
        # What is new is scaled in place: to touch as much new memory again takes longer than the product.
        widened = d_weight_VH.element_size() < weight_type.itemsize and not torch.compiler.is_compiling()
        d_weight_VH = d_weight_VH.to(weight_type).mul_(scale) if widened else (d_weight_VH * scale).to(weight_type)
        return (
            d_features_NH * scale.to(d_features_NH.dtype),
            d_weight_VH,
            None if bias_type is None else (d_bias_V * scale).to(bias_type),
            None,
            None,
            None,
            None,
        )


def _compute(
    features_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    share_N: Tensor | None,
    smoothing: float,
    differentiate: bool,
    trains: bool,
    fused: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Losses [N], hits [N], and the gradients of the losses' sum, each times its share, by features, matrix and bias
    (empty where not asked: all without `differentiate`, the last two without `trains`).

    The gradient by the matrix is summed over panels in float32 at least; of one panel it is the product as it came.
    """
    dtype, sums = features_NH.dtype, torch.promote_types(features_NH.dtype, torch.float32)
    asked = len(target_N)
    if missing := rows_missing(len(features_NH), features_NH.device, features_NH.dtype):
        features_NH = F.pad(features_NH, (0, 0, 0, missing))
        target_N = F.pad(target_N, (0, missing), value=IGNORED)
        share_N = None if share_N is None else F.pad(share_N, (0, missing))
    w_VH, b_V = weight_VH.to(dtype), None if bias_V is None else bias_V.to(dtype)
    vocabulary, positions = len(w_VH), len(target_N)
    scored_N = target_N != IGNORED
    share_N1 = (scored_N if share_N is None else share_N * scored_N)[:, None]
    on_cpu = features_NH.device.type == "cpu"
    score = _fused_score() if fused else _score_in_cache if on_cpu else _score
    losses_N = torch.zeros(positions, dtype=sums, device=features_NH.device)
    hits_N = torch.zeros_like(scored_N)
    chunk, panel = _sizes(features_NH, vocabulary)
    if not trains:
        panel = chunk
    whole = 0 < positions == panel
    d_features_NH, d_weight_VH, d_bias_V = _buffers(
        features_NH, weight_VH, bias_V, differentiate, trains, matrix=not whole
    )
    # One place for what all chunks make, because the first touch of new memory costs as much as the sums in it.
    logits_RV = features_NH.new_empty(chunk, vocabulary)
    block = min(chunk, max(1, BLOCK // max(vocabulary, 1))) if on_cpu else chunk
    room_BV = None if fused else features_NH.new_empty(block, vocabulary, dtype=sums)
    in_place = fused and panel == chunk  # what the compiled kernel makes is the panel
    panel_RV = features_NH.new_empty(panel, vocabulary) if differentiate and not in_place else None
    for start in range(0, positions, max(panel, 1)):
        part = slice(start, min(start + panel, positions))
        for place in range(start, part.stop, chunk):
            own = slice(place, min(place + chunk, part.stop))
            count = own.stop - own.start
            logits_CV = _product(features_NH[own], w_VH, b_V, out=logits_RV[:count])
            into_CV = None if panel_RV is None else panel_RV[own.start - start : own.stop - start]
            target_C1 = target_N[own].clamp(min=0)[:, None]
            d_logits_CV, losses_C, hits_C = _score_chunk(
                score, logits_CV, target_C1, smoothing, block, room_BV, into_CV
            )
            losses_N[own], hits_N[own] = losses_C * scored_N[own], hits_C & scored_N[own]
            if differentiate:
                torch.mm(d_logits_CV, w_VH, out=d_features_NH[own])
        if trains:
            panel_PV = d_logits_CV if panel_RV is None else panel_RV[: part.stop - start]
            # What is not scored is left out here, on H numbers a position, not on V.
            seen_PH = (features_NH[part] * share_N1[part]).to(dtype)
            if whole:
                d_weight_VH = panel_PV.T @ seen_PH
            elif dtype == sums:
                d_weight_VH.addmm_(panel_PV.T, seen_PH)
            else:
                d_weight_VH += panel_PV.T @ seen_PH
            if b_V is not None:
                d_bias_V += (share_N1[part].to(dtype).T @ panel_PV)[0]
    if differentiate:
        d_features_NH *= share_N1
    return losses_N[:asked], hits_N[:asked], d_features_NH[:asked], d_weight_VH, d_bias_V


def _sizes(features_NH: Tensor, vocabulary: int) -> tuple[int, int]:
    """Positions of a chunk and of a panel."""
    dtype, positions = features_NH.dtype, len(features_NH)
    chunk, panel = (_rows(limit, features_NH, vocabulary) for limit in (CHUNK, PANEL))
    if features_NH.device.type == "cpu":
        chunk = max(chunk, LEAST.get(dtype.itemsize, 1))
    if dtype == torch.promote_types(dtype, torch.float32):
        panel = chunk  # the product adds to the gradient of the matrix by itself
    return min(chunk, positions), min(panel, positions)


def _product(features_CH: Tensor, weight_VH: Tensor, bias_V: Tensor | None, *, out: Tensor) -> Tensor:
    """`F.linear`, into memory that is there."""
    if bias_V is None:
        return torch.mm(features_CH, weight_VH.T, out=out)
    return torch.addmm(bias_V, features_CH, weight_VH.T, out=out)


def _buffers(
    features_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    differentiate: bool,
    trains: bool,
    *,
    matrix: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the gradients, those that are summed up in float32 at least; empty where there is none, and that of the
    matrix where not asked."""
    sums = torch.promote_types(features_NH.dtype, torch.float32)
    d_features_NH = torch.empty_like(features_NH) if differentiate else features_NH.new_empty(0)
    if not trains:
        return d_features_NH, weight_VH.new_empty(0, dtype=sums), weight_VH.new_empty(0, dtype=sums)
    d_bias_V = weight_VH.new_empty(0, dtype=sums) if bias_V is None else torch.zeros_like(bias_V, dtype=sums)
    d_weight_VH = torch.zeros_like(weight_VH, dtype=sums) if matrix else weight_VH.new_empty(0, dtype=sums)
    return d_features_NH, d_weight_VH, d_bias_V


# To torch.compile the whole of it is one operation. Traced, its loop over chunks would fix the number of positions,
# and each batch with another number of targets would compile everything once more.
_LIBRARY = torch.library.Library("sslnlp", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(  # type: ignore[no-untyped-call]
    "linear_cross_entropy(Tensor features, Tensor weight, Tensor? bias, Tensor target, Tensor? share, "
    "float smoothing, bool differentiate, bool trains, bool fused) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.impl(_LIBRARY, "linear_cross_entropy", "CompositeExplicitAutograd")
def _operation(features_NH: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    with torch.no_grad(), torch.autocast(features_NH.device.type, enabled=False):
        losses_N, hits_N, d_features_NH, d_weight_VH, d_bias_V = _compute(features_NH, *arguments)
    sums = torch.promote_types(features_NH.dtype, torch.float32)
    return losses_N, hits_N, d_features_NH, d_weight_VH.to(sums), d_bias_V


@torch.library.register_fake("sslnlp::linear_cross_entropy", lib=_LIBRARY)  # type: ignore[untyped-decorator]
def _shapes(
    features_NH: Tensor,
    weight_VH: Tensor,
    bias_V: Tensor | None,
    target_N: Tensor,
    share_N: Tensor | None,
    smoothing: float,
    differentiate: bool,
    trains: bool,
    fused: bool,
) -> tuple[Tensor, ...]:
    losses_N = torch.empty_like(target_N, dtype=torch.promote_types(features_NH.dtype, torch.float32))
    hits_N = torch.empty_like(target_N, dtype=torch.bool)
    return losses_N, hits_N, *_buffers(features_NH, weight_VH, bias_V, differentiate, trains)


def _score_chunk(
    score: Callable[..., tuple[Tensor, Tensor, Tensor]],
    logits_CV: Tensor,
    target_C1: Tensor,
    smoothing: float,
    block: int,
    room_BV: Tensor | None,
    into_CV: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What `score` makes, by blocks; the gradient in `into_CV`, without which it is that of the last block."""
    losses, hits = [], []
    for start in range(0, len(logits_CV), block):
        logits_BV, target_B1 = logits_CV[start : start + block], target_C1[start : start + block]
        into_BV = None if into_CV is None else into_CV[start : start + block]
        made_BV, losses_B, hits_B = score(logits_BV, target_B1, smoothing, room_BV, into_BV)
        if into_BV is not None and made_BV is not into_BV:
            into_BV.copy_(made_BV)
        losses.append(losses_B)
        hits.append(hits_B)
    return made_BV if into_CV is None else into_CV, torch.cat(losses), torch.cat(hits)


def _score(
    logits_BV: Tensor,
    target_B1: Tensor,
    smoothing: float,
    room_BV: Tensor | None = None,
    into_BV: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of the summed losses by the logits [B, V], the losses [B] and whether the target is highest [B].

    The gradient is made in `into_BV` where that is of the type it is exact in, float32 at least, else in `room_BV`.
    """
    exact = torch.promote_types(logits_BV.dtype, torch.float32)
    chance_BV = torch.softmax(logits_BV, -1, exact, out=_place(exact, len(logits_BV), room_BV, into_BV))
    # The largest probability is at least 1 / V, so its logarithm is exact where that of a target's could be -inf.
    top_B1, best_B1 = chance_BV.max(-1, keepdim=True)
    log_sum_B1 = logits_BV.amax(-1, keepdim=True).to(exact) - top_B1.log()
    losses_B1 = log_sum_B1 - (1 - smoothing) * logits_BV.gather(1, target_B1).to(exact)
    if smoothing:
        losses_B1 = losses_B1 - smoothing * logits_BV.mean(-1, keepdim=True, dtype=exact)
        chance_BV -= smoothing / logits_BV.shape[1]
    chance_BV.scatter_add_(1, target_B1, torch.full_like(top_B1, smoothing - 1))
    return chance_BV, losses_B1[:, 0], (best_B1 == target_B1)[:, 0]


def _score_in_cache(
    logits_BV: Tensor,
    target_B1: Tensor,
    smoothing: float,
    room_BV: Tensor | None = None,
    into_BV: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `_score` for a CPU, whose softmax takes longer than its parts in place, on a block in the cache."""
    exact = torch.promote_types(logits_BV.dtype, torch.float32)
    place_BV = _place(exact, len(logits_BV), room_BV, into_BV)
    # `to` would make new room for it each time.
    exact_BV = logits_BV.to(exact) if place_BV is None or logits_BV.dtype == exact else place_BV.copy_(logits_BV)
    top_B1, own_B1 = exact_BV.amax(-1, keepdim=True), exact_BV.gather(1, target_B1)
    # The place of the maximum costs ten times the maximum, so it is looked for where the target may be it: of equal
    # ones the first counts.
    hits_B = (own_B1 == top_B1)[:, 0]
    maybe = hits_B.nonzero()[:, 0]
    hits_B[maybe] = logits_BV[maybe].argmax(-1) == target_B1[maybe, 0]
    losses_B1 = top_B1 - (1 - smoothing) * own_B1
    if smoothing:
        losses_B1 = losses_B1 - smoothing * exact_BV.mean(-1, keepdim=True)
    chance_BV = torch.sub(exact_BV, top_B1, out=place_BV).exp_()
    sum_B1 = chance_BV.sum(-1, keepdim=True)  # at least 1
    chance_BV *= sum_B1.reciprocal()
    if smoothing:
        chance_BV -= smoothing / logits_BV.shape[1]
    chance_BV.scatter_add_(1, target_B1, torch.full_like(top_B1, smoothing - 1))
    return chance_BV, (losses_B1 + sum_B1.log())[:, 0], hits_B


def _place(exact: torch.dtype, rows: int, room_BV: Tensor | None, into_BV: Tensor | None) -> Tensor | None:
    """Where the gradient is made: in `into_BV` if its type is exact."""
    if into_BV is not None and into_BV.dtype == exact:
        return into_BV
    return None if room_BV is None else room_BV[:rows]


def _score_by_element(
    logits_CV: Tensor, target_C1: Tensor, smoothing: float, room_CV: None = None, into_CV: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The same as `_score`, written so that the compiler makes one kernel of it, with the gradient in the logits' type.

    Nothing of float32 [C, V] is then written to memory: the logits are read and their gradient is written.
    """
    x_CV = logits_CV.to(torch.promote_types(logits_CV.dtype, torch.float32))
    log_sum_C1 = x_CV.logsumexp(-1, keepdim=True)
    losses_C1 = log_sum_C1 - (1 - smoothing) * x_CV.gather(1, target_C1) - smoothing * x_CV.mean(-1, keepdim=True)
    own_CV = torch.arange(x_CV.shape[1], device=x_CV.device) == target_C1
    gradient_CV = (x_CV - log_sum_C1).exp() - smoothing / x_CV.shape[1] - own_CV * (1 - smoothing)
    return gradient_CV.to(logits_CV.dtype), losses_C1[:, 0], x_CV.argmax(-1) == target_C1[:, 0]


@functools.cache
def _fused_score() -> Callable[..., tuple[Tensor, Tensor, Tensor]]:
    return torch.compile(_score_by_element)
