"""Attention of stock models by whichever kernel is faster, and with dropped weights that belong to the row.

Registered with `transformers` under the name `row_keyed`, so that no model code is touched. The choice is a rule of the
inputs (device, type, length), not a timing: the same run on the same machine always takes the same path.

Shape suffixes: B rows, A heads, G key-value heads, T queries, S keys, D width of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from sslnlp.keyed import dropout as row_dropout
from sslnlp.keyed import keys_dropout_by_row
from sslnlp.varlen import as_mask, attention_by_starts, is_starts, kernel_takes

NAME = "row_keyed"

LONGEST = 1024
"""On a CPU in bf16, plain matrix products beat the fused kernel up to this many positions: forward and backward take
5.5 times less at 32 positions, 4 times at 128, 2.3 times at 512, 1.3 times at 1,024 (`benchmarks.attention`,
avx512_bf16, heads of 64). The scores stand in memory, 2 bytes × A × S² a row. In float32 the fused kernel wins."""


def by_matmuls(device: torch.device, dtype: torch.dtype, queries: int, keys: int) -> bool:
    """Whether attention is computed by plain matrix products instead of `scaled_dot_product_attention`."""
    return device.type == "cpu" and dtype == torch.bfloat16 and max(queries, keys) <= LONGEST


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """[B, A, T, D] and twice [B, G, S, D] -> [B, T, A, D]. Dropped weights are keyed by row inside training.

    Args:
        attention_mask: bool (True = attend) or float (added to the scores), broadcast to [B, A, T, S], or where
            documents start (`varlen`); without a bool or float one a module whose `is_causal` is set sees no position
            ahead.
        kwargs: `position_bias` is added to the scores (T5); what else stock models pass is left to SDPA.
    """
    if torch.is_autocast_enabled(query.device.type):
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    groups = getattr(module, "num_key_value_groups", 1)
    if attention_mask is not None and is_starts(attention_mask):
        if kernel_takes(query) and dropout == 0 and kwargs.get("position_bias") is None:
            grouped = repeat_kv(key, groups), repeat_kv(value, groups)
            return attention_by_starts(query, *grouped, attention_mask, causal=causal, scaling=scaling), None
        attention_mask = as_mask(attention_mask, query.shape[0], query.shape[2], causal=causal)
    # A cache, or queries that start later than the keys: SDPA knows what is meant.
    plain = kwargs.get("cache") is None and kwargs.get("softcap") is None
    plain &= attention_mask is not None or not causal or query.shape[2] == key.shape[2]
    drops = dropout > 0 and keys_dropout_by_row()
    if not drops and not (plain and by_matmuls(query.device, query.dtype, query.shape[2], key.shape[2])):
        output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout, scaling, is_causal, **kwargs
        )
        return output
    mixed = attention_by_matmuls(
        query,
        repeat_kv(key, groups),
        repeat_kv(value, groups),
        attention_mask,
        causal=causal,
        scaling=scaling if scaling is not None else query.shape[-1] ** -0.5,
        bias=kwargs.get("position_bias"),
        dropout=dropout,
    )
    return mixed, None


def attention_by_matmuls(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    causal: bool,
    scaling: float,
    bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """[B, A, T, D] and twice [B, A, S, D] -> [B, T, A, D]. `causal` counts only where there is no mask."""
    # The queries are scaled, not the scores: there are fewer of them.
    scores = (query * scaling) @ key.transpose(-1, -2)
    if bias is not None:
        scores = scores + bias
    if mask is None and causal and query.shape[2] > 1:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()[None, None]
    if mask is not None:
        scores = scores + _additive(mask[..., : key.shape[2]], scores.dtype)
    # The kernel's softmax of bf16 counts in float32 and rounds once, at the end.
    weights = scores.softmax(-1).to(value.dtype)
    if dropout > 0:
        weights = row_dropout(weights, dropout)
    return (weights @ value).transpose(1, 2).contiguous()


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where a pair is seen, the lowest number elsewhere: one head's worth, where filling the scores would be A."""
    if mask.dtype != torch.bool:
        # The lowest float32 rounds to -inf in bf16, and a row of nothing else would be NaN.
        return mask.to(dtype).clamp(min=torch.finfo(dtype).min)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, torch.finfo(dtype).min)


def attention_mask(**what: Any) -> Tensor | None:
    """The mask of stock models: bool [B, 1, T, S], or None where the kernel needs none and is faster without.

    Stock code reads the padding to find out whether it can do without, which waits for the device, and under
    torch.compile it always builds the mask. In the loop neither is needed: rows are padded on the right, so in a plain
    causal model no token sees padding.
    """
    if keys_dropout_by_row() and what.get("q_length", 0) == what.get("kv_length"):
        padding, everywhere = what.get("attention_mask"), what.get("local_size") is None
        if everywhere and what.get("allow_is_causal_skip", True):
            return None
        if everywhere and padding is None and what.get("allow_is_bidirectional_skip"):
            return None
        if padding is not None and padding.device.type != "cpu":
            what["allow_is_bidirectional_skip"] = False  # few batches are without padding
    made: Tensor | None = sdpa_mask(**what)
    return made


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, attention_mask)
