"""What an update costs before it is timed: operations and bytes, counted while a real micro-batch runs once.

Counting what is executed needs no formula per architecture: gated layers, cross attention, a generator, a decoder that
is thrown away, the head at the scored positions alone are all matrix products that pass by.
"""

from __future__ import annotations

import contextlib
import weakref
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from sslnlp.distributed import alone
from sslnlp.keyed import row_keyed_dropout
from sslnlp.muon import hidden_matrices
from sslnlp.objectives.base import Objective
from sslnlp.sharding import layers
from sslnlp.train_config import TrainConfig
from sslnlp.types import Batch

_aten = torch.ops.aten
_FUSED = tuple(
    getattr(_aten, f"_scaled_dot_product_{kind}{way}")
    for kind in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
    for way in ("", "_backward")
)
_FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # `linear_cross_entropy` adds the gradient of the vocabulary up in place.
    _aten.addmm_: flop_registry[_aten.addmm],
    _aten.baddbmm_: flop_registry[_aten.baddbmm],
}


@dataclass(frozen=True)
class Counted:
    """One micro-batch, forward and backward."""

    flops: float
    """Floating-point operations of matrix products (a multiply and an add are two), those of attention included."""
    live: float
    """Bytes of the most that was alive at once of what the passes make: activations, copies, logits, gradients."""


def count(objective: Objective, batch: Batch, train: TrainConfig) -> Counted:
    """Run `batch` through the objective and back as the loop would, on its device. Weights and gradients stay as
    they were (none).

    Attention counts as its kernel works: packed rows carry a dense mask, so every pair of a row is computed, also those
    of other documents and those ahead; without a mask a causal kernel skips the blocks ahead. The backward pass of a
    fused kernel computes the scores once more, which makes attention 7/2 of its forward pass where all else is 3.
    """
    batch = send_to_device(batch, objective.device)
    held = [*objective.parameters(), *objective.buffers(), *(t for t in tree_leaves(batch) if isinstance(t, Tensor))]
    passes = min(train.accumulate, 2)  # from the second micro-batch on, gradients lie there during the forward pass
    ledger = _Ledger(held)
    objective.train()
    with alone(), contextlib.ExitStack() as stack:
        if "position" in batch:
            stack.enter_context(row_keyed_dropout(train.seed, batch["position"]))
        stack.enter_context(ledger)
        for _ in range(passes):
            with torch.autocast(held[0].device.type, torch.bfloat16, enabled=train.precision == "bf16"):
                output = objective(batch)
            (output.loss if output.terms is None else output.terms).sum().backward()  # type: ignore[no-untyped-call]
            del output
    objective.zero_grad(set_to_none=True)
    return Counted(ledger.flops / passes, float(ledger.most))


class _Ledger(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the operations of every matrix product inside, and the bytes of every storage made there."""

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = self.live = self.most = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in held}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if packet in _FUSED:
            self.flops += _attention(func, args, kwargs)
        elif packet in _FORMULAS:
            self.flops += _FORMULAS[packet](*args, **kwargs, out_val=out)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._keep(tensor.untyped_storage())
        return out

    def _keep(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            return
        self._known.add(storage._cdata)
        self.live += storage.nbytes()
        self.most = max(self.most, self.live)
        weakref.finalize(storage, self._drop, storage._cdata, storage.nbytes())

    def _drop(self, known: int, size: int) -> None:
        self._known.discard(known)
        self.live -= size


def _attention(func: Any, args: Any, kwargs: Any) -> int:
    """Operations of a fused kernel: two products forward, and five backward, the scores being computed again."""
    given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
    rows, heads, queries, width = given["query"].shape
    keys = given["key"].shape[2]
    causal = given.get("is_causal", False)  # what has its default value is not handed on
    pairs = executed_pairs(queries, keys, given["query"].device.type) if causal else queries * keys
    products = 5 if func._overloadpacket.__name__.endswith("_backward") else 2
    return int(products * 2 * rows * heads * pairs * width)


def executed_pairs(queries: int, keys: int, device: str) -> int:
    """(query, key) pairs that a causal kernel computes: whole blocks, up to the one that holds the diagonal.

    Blocks of keys are 512 long on a CPU (a causal row of up to 512 tokens skips nothing there: measured, 1.00 of the
    time at 512, 0.74 at 1,024, 0.63 at 2,048) and about 128 on a GPU (read, not measured).
    """
    query_block, key_block = 128, 128
    if device == "cpu":
        query_block, key_block = 256 if queries >= 768 else 64 if queries >= 192 else 32, 512
    total = 0
    for start in range(0, queries, query_block):
        seen = -(-min(start + query_block, keys) // key_block) * key_block
        total += min(query_block, queries - start) * min(seen, keys)
    return total


def memory(objective: nn.Module, train: TrainConfig, live: float, *, world: int = 1, sharded: bool = False) -> float:
    """Bytes a process needs for its updates, from `live` (see `Counted`): weights, optimiser state and what passes by.

    Weights, their average (`train.ema`), gradients and moments are float32; AdamW has two moments, Muon one for the
    matrices inside the network. DDP (`world` > 1) keeps gradients once more, in its buckets. FSDP2 (`sharded`) cuts
    weights, gradients and moments over the processes; whole are the unit outside the layers and two layers, with their
    gradients. What the optimiser needs for a moment comes when activations are gone: the larger of the two counts.
    Python, its libraries (half a GB on a CPU) and what the allocator does not give back come on top.
    """
    every = 4 * sum(p.numel() for p in objective.parameters())
    gradients = 4 * sum(p.numel() for p in objective.parameters() if p.requires_grad)
    matrices = hidden_matrices(objective) if train.optimizer == "muon" else {}
    moments = 2 * gradients - 4 * sum(p.numel() for p in matrices)
    moments += gradients if train.ema else 0
    buffers = sum(b.numel() * b.element_size() for b in objective.buffers())
    whole = _muon_temporaries(matrices, 2 if train.precision == "bf16" else 4, cut=sharded and world > 1)
    if not sharded or world == 1:
        buckets = gradients if world > 1 else 0
        return every + moments + buffers + buckets + max(live, gradients + whole)
    sizes = [4 * sum(p.numel() for p in layer.parameters()) for layer in layers(objective)]
    unit = every - sum(sizes) + 2 * max(sizes, default=0)
    passes = max(live - gradients, 0) + 2 * unit
    return (every + gradients + moments) / world + buffers + max(passes, whole)


def _muon_temporaries(matrices: dict[Tensor, tuple[tuple[int, ...], bool]], size: int, *, cut: bool) -> int:
    """Bytes of Muon's step beside its momentum: all updates, and the stack of one shape while it is made orthogonal.

    A stack of N matrices m × n stands there once in float32 and, with `size` bytes a number, as the last and the next
    iterate and two products m × m. FSDP2 (`cut`) puts whole updates together beside whole targets.
    """
    updates = 4 * sum(p.numel() for p in matrices) * (2 if cut else 1)
    stacks: dict[tuple[int, int], int] = defaultdict(int)
    for p, (sizes, input_first) in matrices.items():
        inputs = p.shape[0] if input_first else p.shape[1]
        for outputs in sizes:
            stacks[min(outputs, inputs), max(outputs, inputs)] += 1
    most = 0
    for (m, n), number in stacks.items():
        stack = number * m * n
        cast_back = (size + 4) * stack if size < 4 else 0
        most = max(most, 4 * stack + max(2 * size * number * (m * n + m * m), cast_back))
    return updates + most
