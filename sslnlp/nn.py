"""Small parts: pooling, evaluation mode, projector, GELU, teacher, queue.

Shape suffixes: B rows, S tokens, H width, D documents of a row.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sslnlp.errors import UserError

ROWS = 32
"""In bf16 on a CPU a product of a new shape builds a kernel, which took a quarter of the first updates of a small
model. So where the number of rows is another one in each batch it is rounded up to a multiple of this."""

POOLINGS = ("mean", "cls", "last", "weighted")

Function = TypeVar("Function", bound=Callable[..., Any])


class Pooling(nn.Module):
    """One vector a row from its hidden states: `mean` over real tokens, the first (`cls`), the `last` real token, or
    the mean `weighted` by place, 1, 2, 3, ..., for left-to-right models (Muennighoff, 2022, arXiv:2202.08904)."""

    def __init__(self, mode: str = "mean") -> None:
        super().__init__()
        if mode not in POOLINGS:
            raise UserError(f"unknown pooling {mode!r}; accepted: {', '.join(POOLINGS)}")
        self.mode = mode

    def forward(self, hidden_BSH: Tensor, attention_mask_BS: Tensor) -> Tensor:
        """[B, S, H] and [B, S] -> [B, H]. A row without a real token gives zeros under both means."""
        if self.mode == "cls":
            return hidden_BSH[:, 0]
        if self.mode == "last":
            place_S = torch.arange(attention_mask_BS.shape[1], device=hidden_BSH.device)
            last_B = (attention_mask_BS.bool() * place_S).argmax(dim=1)
            return hidden_BSH[torch.arange(len(last_B), device=last_B.device), last_B]
        if self.mode == "weighted":
            return (hidden_BSH * _by_place(attention_mask_BS > 0).to(hidden_BSH.dtype)[..., None]).sum(1)
        mask_BS = attention_mask_BS.to(hidden_BSH.dtype)
        # Summed and counted in float32 at least: in bf16 there is no 257.
        exact = torch.promote_types(hidden_BSH.dtype, torch.float32)
        total_BH = (hidden_BSH * mask_BS[..., None]).sum(1, dtype=exact)
        return (total_BH / attention_mask_BS.sum(1, keepdim=True).clamp(min=1)).to(hidden_BSH.dtype)


def _by_place(own: Tensor) -> Tensor:
    """float32 [..., S]: the places 1, 2, ... of the tokens marked in a bool [..., S], as shares of their sum."""
    place = own * own.cumsum(-1)
    return place / place.sum(-1, keepdim=True).clamp(min=1)


def uncompiled(function: Function) -> Function:
    """The function as it is, called by what is compiled: for what reads a number from the batch, or has one in its
    formulas, and costs little. Each number would be compiled anew, up to a limit from which on all around it is eager.
    """
    eager: Function = torch.compiler.disable(function)  # type: ignore[no-untyped-call]
    return eager


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and each submodule's own mode back after (a frozen part may stay in evaluation mode)."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def rows_missing(rows: int, device: torch.device, dtype: torch.dtype) -> int:
    """How many rows to add to so many before they are multiplied, where that spares kernels."""
    if device.type != "cpu" or torch.compiler.is_compiling():
        return 0
    half = torch.is_autocast_enabled("cpu") or dtype == torch.bfloat16
    return -rows % ROWS if half else 0


def document_count(document_ids_BS: Tensor) -> int:
    """D: the most documents that a row of the batch holds, at least 1 (document ids count from 0; -1 = padding)."""
    return max(1, int(document_ids_BS.max()) + 1)


@uncompiled
def document_pool(
    hidden_BSH: Tensor, document_ids_BS: Tensor, mode: str = "mean", documents: int | None = None
) -> Tensor:
    """One vector a document of packed rows: [B, S, H] and int [B, S] (0, 1, ... in the row, -1 = padding) -> [B, D, H].

    The modes are those of `Pooling`, taken inside each document. Zeros where a row has no such document.

    documents: D, where the caller knows; else it is `document_count`, for which the CPU waits until a GPU is done.
    """
    if mode not in POOLINGS:
        raise UserError(f"unknown pooling {mode!r}; accepted: {', '.join(POOLINGS)}")
    documents = document_count(document_ids_BS) if documents is None else documents
    index_D = torch.arange(documents, device=document_ids_BS.device)
    own_BDS = document_ids_BS[:, None, :] == index_D[:, None]
    if mode == "weighted":
        return _sums(_by_place(own_BDS), hidden_BSH).to(hidden_BSH.dtype)
    if mode != "mean":
        seen_BDS = own_BDS.int()
        rank_BDS = (seen_BDS if mode == "cls" else seen_BDS.flip(-1)).cumsum(-1)
        own_BDS = own_BDS & ((rank_BDS if mode == "cls" else rank_BDS.flip(-1)) == 1)
    # A product with zeros and ones, because adding by index has no fixed order on a GPU.
    total_BDH = _sums(own_BDS, hidden_BSH)
    return (total_BDH / own_BDS.sum(-1, keepdim=True).clamp(min=1)).to(hidden_BSH.dtype)


def _sums(share_BDS: Tensor, hidden_BSH: Tensor) -> Tensor:
    """[B, D, H] in float32 at least, whatever autocast makes of products: vectors of texts may differ by less than
    bf16 tells apart, as a map that is put behind them shows (`Whitened`)."""
    exact = torch.promote_types(hidden_BSH.dtype, torch.float32)
    with torch.autocast(hidden_BSH.device.type, enabled=False):
        return share_BDS.to(exact) @ hidden_BSH.to(exact)


def present(document_ids_BS: Tensor, documents: int) -> Tensor:
    """bool [B, D]: which documents a row has, of `documents` that there may be."""
    index_D = torch.arange(documents, device=document_ids_BS.device)
    return (document_ids_BS[:, None, :] == index_D[:, None]).any(-1)


def each_document(values_BDX: Tensor, document_ids_BS: Tensor) -> Tensor:
    """[N, X]: of values for every place that a row may have a document at, those where it has one."""
    return values_BDX[present(document_ids_BS, values_BDX.shape[1])]


class Teacher(nn.Module):
    """A frozen copy of a module that follows it as an exponential moving average (Tarvainen and Valpola, 2017).

    It is part of the objective's state, so checkpoints carry it; it never trains, drops out or moves but in `update`.
    `momentum` is the share of the old weights that stays; it moves linearly to `momentum_end` over the run. The copy is
    in float32 at least, whatever the module: in bf16 a hundredth of a difference is most often nothing.
    """

    def __init__(self, module: nn.Module, *, momentum: float = 0.999, momentum_end: float | None = None) -> None:
        super().__init__()
        for name, value in (("momentum", momentum), ("momentum_end", momentum_end)):
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"objective.{name} is a share between 0 and 1, got {value}")
        self.momentum, self.momentum_end = momentum, momentum if momentum_end is None else momentum_end
        exact = functools.reduce(torch.promote_types, (p.dtype for p in module.parameters()), torch.float32)
        self.module = copy.deepcopy(module).to(exact).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Teacher:
        return super().train(False)

    @torch.no_grad()
    def update(self, student: nn.Module, progress: float) -> None:
        """Move towards `student` (the module this is a copy of), at `progress` in (0, 1] of the run."""
        kept = self.momentum + (self.momentum_end - self.momentum) * progress
        mine, theirs = self.module.state_dict(), student.state_dict()
        # A state has tied weights under each of their names; they move once.
        names = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        again = names - {name for name, _ in self.module.named_parameters()}
        for name, value in mine.items():
            if name in again:
                continue
            if value.is_floating_point():
                value.lerp_(theirs[name].to(value.dtype), 1 - kept)
            else:
                value.copy_(theirs[name])

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return self.module(*args, **kwargs)


class Queue(nn.Module):
    """The last `size` rows that were pushed, oldest first to go (He et al., 2020, MoCo, arXiv:1911.05722).

    It is part of the objective's state, so checkpoints carry it. `vectors` float32 [K, H] and `tags` int64 [K, T] (what
    a row is known by) hold them in no particular order; `filled` tells which places have been written.
    """

    vectors: Tensor
    tags: Tensor
    pushed: Tensor

    def __init__(self, size: int, width: int, tags: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, width))
        self.register_buffer("tags", torch.zeros(size, tags, dtype=torch.int64))
        self.register_buffer("pushed", torch.zeros((), dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """bool [K]."""
        return torch.arange(len(self.vectors), device=self.pushed.device) < self.pushed

    @torch.no_grad()
    def push(self, vectors_NH: Tensor, tags_NT: Tensor) -> None:
        """Write N rows over the oldest; of more than `size` the last ones stay."""
        rows, size = len(vectors_NH), len(self.vectors)
        place_N = (self.pushed + torch.arange(rows, device=self.pushed.device))[max(0, rows - size) :] % max(1, size)
        self.vectors[place_N] = vectors_NH[max(0, rows - size) :].to(self.vectors.dtype)
        self.tags[place_N] = tags_NT[max(0, rows - size) :]
        self.pushed += rows


class Projector(nn.Sequential):
    """[..., width] -> [..., out] by one hidden layer, normalised within each vector: no row's result depends on others,
    as it would with the batch norm of the vision papers. Vectors, which come in float32 at least, are taken in the type
    of its weights."""

    def __init__(self, width: int, hidden: int, out: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, x: Tensor) -> Tensor:
        projected: Tensor = super().forward(x.to(next(self.parameters()).dtype))  # type: ignore[no-untyped-call]
        return projected


class TanhGELU(nn.GELU):
    """`nn.GELU(approximate="tanh")`, the GELU of GPT-2, in a form that compiles well on a CPU: 0.5 x (1 + tanh u) is
    x sigmoid(2u), and the compiler has a faster exp than tanh (4,096 x 1,024 in bf16: both ways in 0.4 of the time)."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or not torch.compiler.is_compiling():
            return super().forward(x)
        wide = x.float() if x.dtype.itemsize < 4 else x
        linear = 2 * math.sqrt(2 / math.pi)
        return (wide * torch.sigmoid(wide * (linear + 0.044715 * linear * wide * wide))).to(x.dtype)
