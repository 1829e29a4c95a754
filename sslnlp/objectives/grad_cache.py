"""Large batches in the memory of small ones: a batch is encoded in parts, and encoded again to go back through it.

What compares the rows of a batch needs the vectors of all of them, but not what was kept on the way to them. Here only
the vectors stay; in the backward pass each part is run a second time, with the same dropout, just before its gradient
goes through it. The gradient is that of the whole batch (GradCache; Gao et al., 2021, arXiv:2101.06983), for a third
more work. Nothing else changes: it is one autograd graph, so any loss, DDP and FSDP2 stand on it as on any other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sslnlp.errors import UserError
from sslnlp.keyed import dropout_from_here
from sslnlp.types import Encoding

Result = TypeVar("Result", Tensor, tuple[Tensor, Tensor])


def check_mini_batch_size(size: int | None) -> None:
    """Refuse what is no number of rows."""
    if size is not None and size < 1:
        raise UserError(f"objective.mini_batch_size={size} must be at least 1; leave it out to encode a batch at once")


def encode_in_parts(
    encode: Callable[[Encoding], Tensor], encoding: Encoding, size: int | None, *, copies: int = 1
) -> Tensor:
    """`encode(encoding)`, `size` rows at a time: [N, ...] joined over the parts.

    `encode` makes of an encoding of some rows what belongs to them, in their order, each row by itself; every tensor of
    the encoding has one entry a row. What is kept for the backward pass is what `encode` returned. copies: rows of the
    encoding for each row of the batch (several negatives), which stay together.
    """
    rows = len(next(iter(encoding.values())))
    if size is None or size >= rows:
        return encode(encoding)
    dropout_of = dropout_from_here()

    def run(part: slice) -> Tensor:
        with dropout_of(part):
            inner = slice(part.start * copies, part.stop * copies)
            return encode({name: value[inner] for name, value in encoding.items()})

    return torch.cat(in_parts(run, rows // copies, max(1, size // copies)))


def in_parts(run: Callable[[slice], Result], number: int, size: int | None) -> list[Result]:
    """`run` of each part of `number` things, at most `size` in a part; what it keeps for the backward pass is thrown
    away and made again there."""
    if size is None or size >= number:
        return [run(slice(0, number))]
    parts = [slice(start, start + size) for start in range(0, number, size)]
    if not torch.is_grad_enabled():
        return [run(part) for part in parts]
    return [checkpoint(run, part, use_reentrant=False) for part in parts]
