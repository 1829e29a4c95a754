"""Optimisers and learning-rate schedules. A schedule is a pure function of the step, so there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from sslnlp.muon import Muon

SCHEDULES = ("wsd", "cosine", "linear", "constant")


def learning_rate_factor(step: int, steps: int, *, schedule: str, warmup: int, decay: float) -> float:
    """The share of the peak learning rate at update `step` (0-based) of `steps`, in (0, 1].

    `wsd`: linear warm-up, stable, then linear decay to zero over the last `decay` share (Hu et al., 2024);
    `cosine` and `linear` fall from the end of the warm-up to zero; `constant` stays. The last update is never at zero.
    """
    if step < warmup:
        return (step + 1) / warmup
    left = steps - step
    if schedule == "wsd":
        tail = max(1, round(decay * steps))
        return min(1.0, left / (tail + 1)) if left <= tail else 1.0
    span = max(1, steps - warmup)
    if schedule == "cosine":
        return max(0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (span + 1))), 1e-8)
    if schedule == "linear":
        return left / (span + 1) if left <= span else 1.0
    return 1.0


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Matrices decay; biases, norms and other vectors do not. Frozen parameters are left out."""
    trainable = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]


def adamw(
    module: nn.Module, *, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, dtype: torch.dtype
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) with bias correction, one fused kernel for all tensors; always in float32."""
    groups = [group for group in parameter_groups(module, weight_decay) if group["params"]]
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=True)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": Muon}
