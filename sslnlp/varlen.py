"""Attention over packed documents by a kernel that takes where they start, instead of a mask of all pairs.

On a GPU in half precision: a mask of pairs, [B, S, S], rules out the flash kernels (Dao, 2023, arXiv:2307.08691). The
starts go where the mask would, int32 [1, 1, 1, D + 1], so that no model code is touched; what computes attention under
the name `attention.NAME` takes them, by the kernel or, where that does not run, by the mask they stand for.

Shape suffixes: B rows, S tokens, A heads, W width of a head, D documents of a batch.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslnlp.types import Batch, Row

Collate = Callable[[Sequence[Row]], Batch]
log = logging.getLogger(__name__)

STARTS = "document_starts"
"""The key of a batch: int32 [D + 1], where its documents start in the flattened [B × S], and at last B × S."""


def document_starts(document_BS: Tensor) -> Tensor:
    """int32 [D + 1] of document ids [B, S] on the CPU: a row, a document of it and its padding start anew.

    D is a power of two, so that few shapes come: documents of no tokens stand at the front.
    """
    opens_BS = torch.ones(document_BS.shape, dtype=torch.bool)
    opens_BS[:, 1:] = document_BS[:, 1:] != document_BS[:, :-1]
    found = opens_BS.flatten().nonzero().squeeze(1).int()
    empty = (1 << (len(found) - 1).bit_length()) - len(found)
    return F.pad(F.pad(found, (empty, 0)), (0, 1), value=document_BS.numel())


def with_starts(collate: Collate) -> Collate:
    """The same batches and, where rows are packed, their `document_starts`."""
    return functools.partial(_started, collate)


def _started(collate: Collate, rows: Sequence[Row]) -> Batch:
    batch = collate(rows)
    return batch | {STARTS: document_starts(batch["document_ids"])} if "document_ids" in batch else batch


def is_starts(mask: Tensor) -> bool:
    """Whether what stands for an attention mask are the starts of documents."""
    return mask.dtype == torch.int32


def as_mask(starts: Tensor, rows: int, length: int, *, causal: bool) -> Tensor:
    """bool [B, 1, S, S]: the mask that the starts [..., D + 1] stand for."""
    place = torch.arange(rows * length, device=starts.device, dtype=starts.dtype)
    document_BS = torch.searchsorted(starts.flatten(), place, right=True).view(rows, length)
    same = (document_BS[:, :, None] == document_BS[:, None, :])[:, None]
    return same.tril() if causal else same


def kernel_takes(query: Tensor) -> bool:
    """Whether the kernel is one for such queries."""
    return query.device.type == "cuda" and query.dtype in (torch.bfloat16, torch.float16)


def attention_by_starts(
    query: Tensor, key: Tensor, value: Tensor, starts: Tensor, *, causal: bool, scaling: float | None = None
) -> Tensor:
    """Three times [B, A, S, W] -> [B, S, A, W]: each document [start, next start) of the rows end to end by itself."""
    from torch.nn.attention.varlen import varlen_attn

    rows, heads, length, width = query.shape
    q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    starts, window = starts.flatten(), (-1, 0 if causal else -1)
    mixed: Any = varlen_attn(q, k, v, starts, starts, length, length, scale=scaling, window_size=window)
    return torch.as_tensor(mixed).view(rows, length, heads, width)


@functools.cache
def kernel_agrees(device: torch.device, width: int, *, causal: bool) -> bool:
    """Whether the kernel runs here for heads of this width, both ways, with the results that a mask has.

    Tried on random numbers, for the interface is young (torch 2.11) and which GPUs have the kernel differs. Says why
    not in the log.
    """
    starts = document_starts(torch.tensor([[0] * 40 + [1] + [2] * 23, [0] * 50 + [-1] * 14])).to(device)
    draws = torch.randn(4, 2, 2, 64, width, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    inputs, grad = draws[:3].unbind(), draws[3].transpose(1, 2)

    def both_ways(dtype: torch.dtype, attend: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        query, key, value = (x.to(dtype).detach().requires_grad_() for x in inputs)
        mixed = attend(query, key, value)
        return [mixed.detach(), *torch.autograd.grad(mixed, (query, key, value), grad.to(dtype))]

    def by_mask(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        mask = as_mask(starts, 2, 64, causal=causal)
        return F.scaled_dot_product_attention(query, key, value, mask).transpose(1, 2)

    try:
        with torch.enable_grad():
            found = both_ways(torch.bfloat16, functools.partial(attention_by_starts, starts=starts, causal=causal))
            pairs = zip(found, both_ways(torch.float32, by_mask), strict=True)
            apart = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    except Exception as error:  # what is missing, and how that is said, differs by version and GPU
        log.info("documents are kept apart by masks: no kernel takes their starts (%s)", str(error).split("\n")[0])
        return False
    if not apart < 0.02:  # bf16 has 8 bits: 0.4 % a rounding
        log.warning("documents are kept apart by masks: the kernel that takes their starts is %.1g off", apart)
    return apart < 0.02
