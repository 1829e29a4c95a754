"""Muon: momentum whose matrix is made orthogonal, for the matrices inside a network; AdamW for everything else.

Source: Jordan et al. (2024), "Muon: an optimizer for hidden layers in neural networks"; the size of an update and the
weight decay follow Liu et al. (2025), "Muon is scalable for LLM training", so learning rates of AdamW carry over.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from sslnlp.distributed import cut_like, whole
from sslnlp.models import embedding_tables

# a·x + b·x³ + c·x⁵, five times over, drives singular values in (0, 1] towards 1 (Jordan et al.).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 5
MOMENTUM = (0.85, 0.95)
MOMENTUM_WARMUP = 300
"""Updates over which the momentum rises: early gradients are stale sooner."""

FUSED = {"Wqkv": 3, "qkv": 3, "qkv_proj": 3, "c_attn": 3, "Wi": 2, "gate_up_proj": 2}
"""Name of a stock layer that holds several matrices side by side -> how many: each is made orthogonal by itself. Three
are queries, keys and values, of which there may be fewer heads of the last two (`num_key_value_heads`)."""

SMALLEST = 16
"""A matrix with fewer rows or columns (a head with few classes) has no spectrum worth evening out."""


def orthogonalise(matrix_Nmn: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Newton–Schulz: every matrix of the stack with its singular values brought near 1 (0.7 to 1.2), by matmuls alone.

    Args:
        matrix_Nmn: N matrices, m ≤ n is the cheaper way round.
        dtype: of the products; the result has the dtype of the input.
    """
    x = matrix_Nmn.to(dtype)
    x = x / x.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7).to(dtype)
    a, b, c = COEFFICIENTS
    if dtype == torch.float32 and x.shape[-1] >= 2 * x.shape[-2]:
        x = _product_of_factors(x @ x.mT) @ x
    else:
        for _ in range(STEPS):
            gram = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrix_Nmn.dtype)


def _product_of_factors(gram_Nmm: Tensor) -> Tensor:
    """[N, m, m]: what all steps together multiply a matrix with, from its products with itself.

    Every step multiplies with a polynomial of the gram, and they commute: where n = 4 m that takes half the work of
    going through the m × n matrix five times. In bf16 the powers of small singular values would be lost.
    """
    a, b, c = COEFFICIENTS
    total = None
    for step in range(STEPS):
        factor = torch.baddbmm(gram_Nmm, gram_Nmm, gram_Nmm, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        total = factor if total is None else factor @ total
        if step < STEPS - 1:
            gram_Nmm = factor @ (factor @ gram_Nmm)
    assert total is not None
    return total


def momentum_at(update: Tensor) -> Tensor:
    """The momentum of update `update` (0-based): rises linearly over the first `MOMENTUM_WARMUP` updates."""
    low, high = MOMENTUM
    return low + (high - low) * (update / MOMENTUM_WARMUP).clamp(max=1.0)


def hidden_matrices(module: nn.Module) -> dict[Tensor, tuple[tuple[int, ...], bool]]:
    """The trainable matrices inside the network -> (outputs of those that lie side by side in it, whether it is stored
    input-first).

    Left out: embeddings, the output head (tied or not), vectors, and matrices with a side below `SMALLEST`.
    """
    outside = embedding_tables(module)
    shares: dict[nn.Module, tuple[int, ...]] = {}
    for part in module.modules():
        if isinstance(part, PreTrainedModel):
            shares |= dict.fromkeys(part.modules(), _heads(part.config))
            head: Any = part.get_output_embeddings()
            if head is not None:
                outside.update(head.parameters())
    found: dict[Tensor, tuple[tuple[int, ...], bool]] = {}
    for name, part in module.named_modules():
        if not isinstance(part, nn.Linear | Conv1D) or part.weight in outside or not part.weight.requires_grad:
            continue
        parts, input_first = FUSED.get(name.rpartition(".")[2], 1), isinstance(part, Conv1D)
        outputs, inputs = part.weight.shape[::-1] if input_first else part.weight.shape
        heads = shares.get(part, (1, 1, 1)) if parts == 3 else (1,) * parts
        if outputs % sum(heads):
            heads = (1,)
        sizes = tuple(outputs // sum(heads) * some for some in heads)
        if min(*sizes, inputs) >= SMALLEST:
            found[part.weight] = (sizes, input_first)
    return found


def _heads(config: PreTrainedConfig) -> tuple[int, int, int]:
    """Of queries, keys and values, in the smallest numbers."""
    queries = getattr(config, "num_attention_heads", 1)
    others = 1 if getattr(config, "multi_query", False) else getattr(config, "num_key_value_heads", None) or queries
    if not (isinstance(queries, int) and isinstance(others, int)):  # unlike in every layer
        return 1, 1, 1
    least = math.gcd(queries, others)
    return queries // least, others // least, others // least


class Muon(torch.optim.Optimizer):
    """Muon for `hidden_matrices`, AdamW for the rest, in one optimiser with one state.

    Matrices of one shape are stacked, so that a network of many small layers costs a few batched products. An update
    of a matrix m × n has root mean square 0.2, as AdamW's has, so one decay and one scale of rates serve both kinds.
    Under FSDP2 every rank puts the updates together and orthogonalises them all, then keeps its part. Where the
    attribute `found_inf` is a tensor that holds 1, weights and state stay as they are, as in torch's fused optimisers.

    Args:
        module: whose trainable parameters are updated.
        lr: peak rate of both kinds.
        betas, eps: of AdamW.
        weight_decay: decoupled, of all matrices.
        embedding_lr_scale: tables of embeddings learn at this multiple of the rate; it is in the `lr` of their group.
        dtype: of the Newton–Schulz products.
    """

    def __init__(
        self,
        module: nn.Module,
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        embedding_lr_scale: float = 1.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._layout = hidden_matrices(module)
        self._dtype = dtype
        trainable = [p for p in module.parameters() if p.requires_grad]
        others = [p for p in trainable if p not in self._layout]
        # At one rate they stay among the other matrices: the groups are those of checkpoints from before there was one.
        tables = embedding_tables(module) if embedding_lr_scale != 1 else set()
        groups: list[dict[str, Any]] = [
            {"params": list(self._layout), "kind": "muon", "weight_decay": weight_decay},
            {
                "params": [p for p in others if p in tables], "kind": "adamw", "weight_decay": weight_decay,
                "lr": lr * embedding_lr_scale, "lr_scale": embedding_lr_scale,
            },
            {
                "params": [p for p in others if p.ndim >= 2 and p not in tables], "kind": "adamw",
                "weight_decay": weight_decay,
            },
            {"params": [p for p in others if p.ndim < 2], "kind": "adamw", "weight_decay": 0.0},
        ]  # fmt: skip
        # `fused` makes torch load the counts of updates to where the parameters are.
        super().__init__([g for g in groups if g["params"]], {"lr": lr, "betas": betas, "eps": eps, "fused": True})
        self.found_inf: Tensor | None = None

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if group["kind"] == "muon":
                self._muon(params, group)
            else:
                self._adamw(params, group)
        return loss

    def _adamw(self, params: list[Tensor], group: dict[str, Any]) -> None:
        state = [self._state_of(p, "exp_avg", "exp_avg_sq") for p in params]
        beta1, beta2 = group["betas"]
        adamw_(
            params,
            [p.grad for p in params if p.grad is not None],
            [s["exp_avg"] for s in state],
            [s["exp_avg_sq"] for s in state],
            [],
            [s["step"] for s in state],
            fused=True, amsgrad=False, maximize=False, beta1=beta1, beta2=beta2, lr=group["lr"],
            weight_decay=group["weight_decay"], eps=group["eps"], found_inf=self.found_inf,
        )  # fmt: skip

    def _muon(self, params: list[Tensor], group: dict[str, Any]) -> None:
        stacks: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        cut: list[tuple[Tensor, Tensor]] = []  # under FSDP2: a parameter of which we hold a part, and its whole update
        states = [self._state_of(p, "momentum") for p in params]
        # Counted on the device: with `found_inf` only the device knows what counts, and nobody waits for it.
        momenta = momentum_at(torch.stack([state["step"] for state in states])).unbind() if states else ()
        moves: Tensor | float = 1.0 if self.found_inf is None else 1.0 - self.found_inf
        for p, state, momentum in zip(params, states, momenta, strict=True):
            assert p.grad is not None
            if self.found_inf is not None:
                p.grad.masked_fill_(self.found_inf.bool(), 0.0)  # 0 × NaN would be NaN
            state["step"] += moves
            state["momentum"].lerp_(p.grad, (1 - momentum) * moves)
            ahead = p.grad.lerp(state["momentum"], momentum)  # Nesterov's look ahead
            p.mul_(1 - group["lr"] * group["weight_decay"] * moves)
            update, target = whole(ahead), p.detach()
            if update is not ahead:
                target = torch.zeros_like(update)
                cut.append((p, target))
            for weight, step in zip(self._pieces(p, target), self._pieces(p, update), strict=True):
                if step.shape[0] > step.shape[1]:
                    weight, step = weight.mT, step.mT
                stacks[(step.shape[0], step.shape[1])].append((weight, step))
        for (_, n), pairs in stacks.items():
            updates = orthogonalise(torch.stack([step for _, step in pairs]), self._dtype)
            updates *= -group["lr"] * 0.2 * n**0.5 * moves
            for (weight, _), update in zip(pairs, updates, strict=True):
                weight.add_(update)
        for p, target in cut:
            p.add_(cut_like(target, p))

    def _state_of(self, p: Tensor, *moments: str) -> dict[str, Tensor]:
        """The state of a parameter: how many updates it had, and running means, which begin at 0."""
        if not self.state[p]:
            self.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device)}
            self.state[p] |= {name: torch.zeros_like(p) for name in moments}
        state: dict[str, Tensor] = self.state[p]
        return state

    def _pieces(self, p: Tensor, tensor: Tensor) -> Iterator[Tensor]:
        """Views of the matrices that lie side by side in a parameter, outputs first."""
        sizes, input_first = self._layout[p]
        outputs_first, start = tensor.mT if input_first else tensor, 0
        for size in sizes:
            yield outputs_first.narrow(0, start, size)
            start += size
