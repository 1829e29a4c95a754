"""The last layer of an encoder where its states are asked for, and nowhere else: its other states feed nothing.

Keys and values of all positions are read by those that are asked for. All else a layer does position by position
(queries, output projection, norms, feed-forward), and a masked language model asks for a seventh of them.

Shape suffixes: B rows, S tokens, H width, N positions asked for, M as many as are computed, T queries of a row,
A heads, D width of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.modernbert.modeling_modernbert import rotate_half

from sslnlp.attention import NAME, attention
from sslnlp.nn import rows_missing
from sslnlp.packed import agree, backbone_of, drops_out, hidden_states
from sslnlp.types import Encoding

_ASKED = "_sslnlp_asked"
"""Attribute of a layer that is computed where it is asked: whether only outside training, for it drops out, and what
is dropped belongs to a place in a row."""

QUERIES = 16
"""A row is given so many queries, or a multiple: a product of a new shape builds a kernel (see `sslnlp.nn.ROWS`)."""


def states_at(model: PreTrainedModel, encoding: Encoding, index_N: Tensor) -> Tensor:
    """The last hidden states [N, H] of the backbone at the flat positions `index_N` of [B × S], documents isolated."""
    layer = _last_layer(model)
    evaluating = getattr(layer, _ASKED, None)
    if layer is not None and evaluating is not None and not (evaluating and layer.training):
        return hidden_states(model, encoding, asked_index=index_N)[0, : len(index_N)]
    return hidden_states(model, encoding).flatten(0, 1)[index_N]


def ask_last_layer(model: PreTrainedModel) -> None:
    """From here on `states_at` computes the last layer where it is asked, if this is an encoder of a kind known and,
    tried on a probe, the states are the same; in training, if the model does not drop out.

    Parameters, their names and what the model computes otherwise stay as they are.
    """
    layer, forward = _last_layer(model), _KINDS.get(model.config.model_type)
    if layer is None or forward is None or hasattr(layer, _ASKED):
        return

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids = (torch.arange(8, device=model.device) % model.config.vocab_size).view(2, 4)
        probe = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        index = torch.tensor([1, 2, 6], device=ids.device)
        yield states_at(model, probe, index), hidden_states(model, probe).flatten(0, 1)[index]

    # Of the instance, not a class of its own: FSDP2 wraps layers by the names of their classes.
    vars(layer).update({"forward": functools.partial(forward, layer), _ASKED: drops_out(model)})
    if not agree(model, compared):
        del vars(layer)["forward"], vars(layer)[_ASKED]


def _last_layer(model: PreTrainedModel) -> nn.Module | None:
    backbone = backbone_of(model)
    stack = getattr(getattr(backbone, "encoder", backbone), "layer", getattr(backbone, "layers", None))
    return stack[-1] if isinstance(stack, nn.ModuleList) and len(stack) else None


def _norm_after(
    layer: Any,
    hidden_BSH: Tensor,
    attention_mask: Tensor | None = None,
    *args: Any,
    asked_index: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The layer of BERT, RoBERTa, ELECTRA."""
    if asked_index is None:
        return type(layer).forward(layer, hidden_BSH, attention_mask, *args, **kwargs)
    mixer, index_M = layer.attention.self, _rounded(asked_index, hidden_BSH)
    asked_MH = _at(hidden_BSH, index_M)
    if _asks_queries(mixer, hidden_BSH):
        heads = mixer.num_attention_heads, mixer.attention_head_size
        query_MAD = mixer.query(asked_MH).view(-1, *heads)
        key, value = (part(hidden_BSH).view(*hidden_BSH.shape[:2], *heads) for part in (mixer.key, mixer.value))
        context_MH = _context(mixer, query_MAD, key, value, attention_mask, asked_index)
    else:
        context_MH = _at(mixer(hidden_BSH, attention_mask)[0], index_M)
    attended_1MH = layer.attention.output(context_MH, asked_MH)[None]
    return layer.output(layer.intermediate(attended_1MH), attended_1MH)  # no view: FSDP2 warns of those


def _norm_before(
    layer: Any,
    hidden_BSH: Tensor,
    attention_mask: Tensor | None = None,
    position_embeddings: Any = None,
    asked_index: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The layer of ModernBERT."""
    kwargs |= {"attention_mask": attention_mask, "position_embeddings": position_embeddings}
    if asked_index is None:
        return type(layer).forward(layer, hidden_BSH, **kwargs)
    mixer, normed_BSH, index_M = layer.attn, layer.attn_norm(hidden_BSH), _rounded(asked_index, hidden_BSH)
    if _asks_queries(mixer, hidden_BSH) and type(mixer.Wqkv) is nn.Linear:
        width = hidden_BSH.shape[-1]
        heads = width // mixer.head_dim, mixer.head_dim
        turns = torch.stack(position_embeddings).expand(-1, len(hidden_BSH), -1, -1)
        query_MH = _of_rows(mixer.Wqkv, slice(width), _at(normed_BSH, index_M))
        query_MAD = _turned(query_MH.view(-1, *heads), *turns.flatten(1, 2)[:, index_M])
        rest = _of_rows(mixer.Wqkv, slice(width, None), normed_BSH)
        key, value = rest.view(*hidden_BSH.shape[:2], 2, *heads).unbind(2)
        context_MH = _context(mixer, query_MAD, _turned(key, *turns), value, attention_mask, asked_index)
        mixed_MH = mixer.Wo(context_MH)
    else:
        mixed_MH = _at(mixer(normed_BSH, **kwargs)[0], index_M)
    attended_1MH = (_at(hidden_BSH, index_M) + mixed_MH)[None]
    return attended_1MH + layer.mlp(layer.mlp_norm(attended_1MH))  # no view: FSDP2 warns of those


def _at(states_BSH: Tensor, index_M: Tensor) -> Tensor:
    """[M, H]."""
    return states_BSH.flatten(0, 1)[index_M]


def _rounded(index_N: Tensor, states: Tensor) -> Tensor:
    """[M]: some position again and again up to a number of rows that spares kernels."""
    missing = rows_missing(len(index_N), states.device, states.dtype)
    return F.pad(index_N, (0, missing)) if missing else index_N


def _of_rows(linear: nn.Linear, rows: slice, x: Tensor) -> Tensor:
    """Some of the outputs of a linear layer."""
    return F.linear(x, linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def _turned(heads: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """[..., A, D] by the angles [..., D] of their positions, as in ModernBERT (Su et al., 2021, arXiv:2104.09864)."""
    exact = heads.float()
    turned: Tensor = exact * cos.unsqueeze(-2) + rotate_half(exact) * sin.unsqueeze(-2)
    return turned.to(heads.dtype)


def _asks_queries(mixer: Any, states: Tensor) -> bool:
    """Whether also attention is computed for the positions asked for alone: how many a row has at most is read from the
    batch, for which a GPU would wait and a compiler begin anew."""
    ours = mixer.config._attn_implementation == NAME and not mixer.is_causal
    return bool(ours and states.device.type == "cpu" and not torch.compiler.is_compiling())


def _context(
    mixer: Any, query_MAD: Tensor, key_BSAD: Tensor, value_BSAD: Tensor, mask: Tensor | None, index_N: Tensor
) -> Tensor:
    """[M, A × D]: what the first N queries find in their rows; zeros for the others."""
    rows, length = key_BSAD.shape[:2]
    row_N = index_N // length
    count_B = torch.bincount(row_N, minlength=rows)
    most = -(-max(1, int(count_B.max())) // QUERIES) * QUERIES
    order_N = row_N.argsort(stable=True)
    first_B = count_B.cumsum(0) - count_B
    rank_N = torch.empty_like(row_N).scatter(0, order_N, torch.arange(len(row_N)) - first_B[row_N[order_N]])
    place_N = row_N * most + rank_N
    query = query_MAD.new_zeros(rows * most, *query_MAD.shape[1:]).index_copy(0, place_N, query_MAD[: len(index_N)])
    if mask is not None and mask.shape[-2] > 1:
        asked_BT = index_N.new_zeros(rows * most).index_copy(0, place_N, index_N % length).view(rows, 1, most, 1)
        mask = mask.expand(rows, 1, -1, -1).gather(2, asked_BT.expand(-1, -1, -1, mask.shape[-1]))
    mixed_BTAD, _ = attention(
        mixer,
        query.view(rows, most, *query.shape[1:]).transpose(1, 2),
        key_BSAD.transpose(1, 2),
        value_BSAD.transpose(1, 2),
        mask,
        scaling=query_MAD.shape[-1] ** -0.5,
    )
    context_NH = mixed_BTAD.flatten(0, 1).flatten(1)[place_N]
    missing = len(query_MAD) - len(index_N)
    return F.pad(context_NH, (0, 0, 0, missing)) if missing else context_NH


# By name, since fresh weights hardly tell: what differs by where a norm stands is lost in the rounding of a probe.
_KINDS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text"), _norm_after),
    "modernbert": _norm_before,
}
"""Type of a model -> how its layers are computed at some positions."""
