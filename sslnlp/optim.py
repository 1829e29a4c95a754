"""Optimisers and learning-rate schedules. A schedule is a pure function of the step, so there is no state to save."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sslnlp.models import embedding_tables, layer_of
from sslnlp.muon import Muon


def learning_rate_factor(step: int, steps: int, *, schedule: str, warmup: float, decay: float) -> float:
    """The share of the peak learning rate at update `step` (0-based) of `steps`, in (0, 1].

    `wsd`: linear warm-up, stable, then linear decay to zero over the last `decay` share (Hu et al., 2024);
    `cosine` and `linear` fall from the end of the warm-up to zero; `constant` stays, and so does `wsd` at a `decay` of
    0. The last update is never at zero. `warmup`: a number of updates, or, below 1, the share of them.
    """
    warmup = round(warmup * steps) if warmup < 1 else int(warmup)
    if step < warmup:
        return (step + 1) / warmup
    left = steps - step
    if schedule == "wsd" and decay > 0:
        tail = max(1, min(round(decay * steps), steps - warmup))  # a long warm-up leaves less than was asked for
        return min(1.0, left / (tail + 1)) if left <= tail else 1.0
    span = max(1, steps - warmup)
    if schedule == "cosine":
        return max(0.5 * (1 + math.cos(math.pi * (step - warmup + 1) / (span + 1))), 1e-8)
    if schedule == "linear":
        return left / (span + 1) if left <= span else 1.0
    return 1.0


@torch.no_grad()
def relative_rate(model: nn.Module, share: float) -> float:
    """`share` × the root mean square of the weights in the layers' matrices / (width × layers): a rate to fine-tune at.

    An update of Adam is as long in every entry, whatever the weight is. It adds up over the inputs of a matrix (Yang
    and Hu, 2021, arXiv:2011.14522: the rate of a hidden matrix falls as 1 / width) and over the layers behind each
    other, so that small models, and large weights such as Muon leaves, take a higher rate to move as far. With a share
    of 6: 1.6e-4 for MiniLM, 3.2e-3 for a `model.size=tiny` after 3,000 updates of Muon. Rounded to two digits.
    """
    places = layer_of(model)
    layers = {(name.partition(f".{place}.")[0], place) for name, place in places.items()}
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.ndim >= 2}
    matrices = [parameter for name, parameter in named.items() if name in places] or list(named.values())
    squares = sum(float(torch.linalg.vector_norm(matrix, dtype=torch.float32)) ** 2 for matrix in matrices)
    size = math.sqrt(squares / sum(matrix.numel() for matrix in matrices))
    config: Any = model.config
    depth = len(layers) or config.num_hidden_layers  # ALBERT's are one layer many times over
    return float(f"{share * size / (config.hidden_size * depth):.2g}")


def parameter_groups(
    module: nn.Module, weight_decay: float, layer_decay: float = 1.0, embedding_lr_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Matrices decay; biases, norms and other vectors do not. Frozen parameters are left out.

    With a `layer_decay` below 1 each layer learns at that factor of the rate of the one above it (`lr_scale`), the
    embeddings at one more; heads and what stands behind the layers learn at the full rate (Howard and Ruder, 2018).
    Tables of embeddings learn at `embedding_lr_scale` times the rate that they would have.
    """
    groups: dict[tuple[bool, float], list[nn.Parameter]] = {}
    model: Any = getattr(module, "model", module)
    places = {id(model.get_parameter(name)): place for name, place in layer_of(model).items()}
    depth = max(places.values(), default=-1) + 1
    below = _embeddings(model) if depth else set()
    tables = embedding_tables(module)
    for parameter in module.parameters():
        if parameter.requires_grad:
            place = -1 if id(parameter) in below else places.get(id(parameter), depth)
            scale = layer_decay ** (depth - place) * (embedding_lr_scale if parameter in tables else 1.0)
            groups.setdefault((parameter.ndim >= 2, scale), []).append(parameter)
    return [
        {"params": parameters, "weight_decay": weight_decay if matrix else 0.0, "lr_scale": scale}
        for (matrix, scale), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def _embeddings(model: Any) -> set[int]:
    """The parameters of the module that embeds tokens, and of its neighbours (positions, segments, their norm)."""
    if not hasattr(model, "get_input_embeddings"):
        return set()
    table = model.get_input_embeddings()
    parent = next((part for part in model.modules() if any(child is table for child in part.children())), table)
    # A small module of embeddings alone (BERT's), or the whole backbone (Llama's), of which the table is meant.
    alone = not any(isinstance(child, nn.ModuleList) for child in parent.modules())
    return {id(parameter) for parameter in (parent if alone else table).parameters()}


def adamw(
    module: nn.Module,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    layer_decay: float = 1.0,
    embedding_lr_scale: float = 1.0,
    dtype: torch.dtype,
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) with bias correction, one fused kernel for all tensors; always in float32.

    The `lr` of a group is that of the layers it holds, so that any scheduler keeps them apart.
    """
    groups = parameter_groups(module, weight_decay, layer_decay, embedding_lr_scale)
    scaled = [{**group, "lr": lr * group["lr_scale"]} for group in groups]
    return torch.optim.AdamW(scaled, lr=lr, betas=betas, eps=eps, fused=True)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adamw": adamw, "muon": Muon}
