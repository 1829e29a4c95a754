"""Masks and positions that keep the documents of a packed row apart, as the attention of any stock model takes them.

Shape suffixes: B rows, S tokens, T target tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from sslnlp.architectures import position_offset
from sslnlp.attention import NAME
from sslnlp.types import Encoding
from sslnlp.varlen import STARTS


def attention_inputs(
    config: PreTrainedConfig, encoding: Encoding, dtype: torch.dtype = torch.float32
) -> dict[str, Any]:
    """The `attention_mask` and `position_ids` that keep the documents of a packed row apart, for any stock model.

    Without `document_ids` the plain mask [B, S] is passed on. With them (int [B, S], -1 = padding) the mask is a
    boolean [B, 1, S, S] (True = attend), or what eager attention adds, in `dtype`: same document, not ahead when the
    model is causal, and within its sliding window; models that mix full and sliding-window layers get one mask per
    kind. Positions restart at 0 in each document. Tokens marked in `bidirectional` (bool [B, S], optional) are seen
    from the whole of their document, also by a causal model. Where the batch says where documents start (`varlen`) and
    no more is to be known, these starts stand for the mask.
    """
    document_BS = encoding.get("document_ids")
    if document_BS is None:
        return {"attention_mask": encoding["attention_mask"]}
    position_ids = encoding["position_ids"] + position_offset(config)
    if STARTS in encoding and "bidirectional" not in encoding and starts_suffice(config):
        return {"attention_mask": encoding[STARTS][None, None, None], "position_ids": position_ids}
    same = same_document(document_BS, document_BS)
    distance = distances(document_BS)
    causal = is_causal(config)
    if causal:
        visible = distance >= 0
        if (open_BS := encoding.get("bidirectional")) is not None:
            visible = visible | open_BS[:, None, None, :]
        same = same & visible
    mask = of_layers(config, same, distance, dtype, causal=causal)
    return {"attention_mask": mask, "position_ids": position_ids}


def starts_suffice(config: PreTrainedConfig) -> bool:
    """Whether the attention of such a model is ours in all layers, over the whole of a document."""
    return getattr(config, "_attn_implementation", None) == NAME and _windows(config) == (False, False)


def of_layers(config: PreTrainedConfig, visible: Tensor, distance: Tensor, dtype: torch.dtype, *, causal: bool) -> Any:
    """The mask of a stack whose tokens may see what is `visible`, bool [B, 1, S, S]; of one with layers that slide and
    layers that do not, a mask for each kind. `distance` int64 [S, S]: how far the one seen lies behind.
    """
    all_slide, some_slide = _windows(config)
    mask = for_attention(config, visible, dtype)
    if not all_slide and not some_slide:
        return mask
    # The window of a causal model counts the token itself; a bidirectional one reaches `window` to each side.
    near = distance < config.sliding_window if causal else distance.abs() <= config.sliding_window
    sliding = for_attention(config, visible & near, dtype)
    return sliding if all_slide else {"full_attention": mask, "sliding_attention": sliding}


def _windows(config: PreTrainedConfig) -> tuple[bool, bool]:
    """Whether all layers slide, and whether some do beside others that do not.

    All slide where the kind of model knows a window and no kinds of layers (Mistral, Phi-3); other models ignore a
    window that their configuration came with.
    """
    kinds = set(getattr(config, "layer_types", None) or [])
    all_slide = not kinds and hasattr(type(config), "sliding_window") and config.sliding_window is not None
    return all_slide, "sliding_attention" in kinds


def for_attention(config: PreTrainedConfig, visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A boolean mask as the attention of the model takes it: the eager one adds it to the scores, where True is 1, and
    wants what it adds of the type of its weights."""
    if getattr(config, "_attn_implementation", None) != "eager":
        return visible
    return torch.zeros_like(visible, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)


def distances(document_BS: Tensor) -> Tensor:
    """int64 [S, S]: how far each place of a row lies behind each other one."""
    index = torch.arange(document_BS.shape[1], device=document_BS.device)
    return index[:, None] - index[None, :]


def same_document(query_BT: Tensor, key_BS: Tensor) -> Tensor:
    """bool [B, 1, T, S]: the pairs of the same document. Padding sees everything: nobody reads it, and a row of a mask
    without a single True would be NaN."""
    query = query_BT[:, None, :, None]
    return (query == key_BS[:, None, None, :]) | (query < 0)


def is_causal(config: PreTrainedConfig) -> bool:
    """Whether a stock model of this configuration reads left to right only."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    if (explicit := getattr(config, "is_causal", None)) is not None:
        return bool(explicit)
    if getattr(config, "is_decoder", False):
        return True
    return type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and type(config) not in MODEL_FOR_MASKED_LM_MAPPING
