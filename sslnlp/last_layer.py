"""The last layer of an encoder where its states are asked for, and nowhere else: its other states feed nothing.

Keys and values of all positions are read by those that are asked for; but what a layer does after its attention
(output projection, norms, feed-forward) it does position by position, and a masked language model asks for a seventh.

Shape suffixes: B rows, S tokens, H width, N positions asked for.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslnlp.packed import agree, backbone_of, drops_out, hidden_states
from sslnlp.types import Encoding

_ASKED = "_sslnlp_asked"
"""Attribute of a layer that is computed where it is asked."""


def states_at(model: PreTrainedModel, encoding: Encoding, index_N: Tensor) -> Tensor:
    """The last hidden states [N, H] of the backbone at the flat positions `index_N` of [B × S], documents isolated."""
    layer = _last_layer(model)
    if getattr(layer, _ASKED, False):
        return hidden_states(model, encoding, asked_index=index_N)[0]
    return hidden_states(model, encoding).flatten(0, 1)[index_N]


def ask_last_layer(model: PreTrainedModel) -> None:
    """From here on `states_at` computes the last layer where it is asked, if this is an encoder of a kind known and,
    tried on a probe, the states are the same. Not where the model drops out: what is dropped belongs to places in rows.

    Parameters, their names and what the model computes otherwise stay as they are.
    """
    layer, forward = _last_layer(model), _KINDS.get(model.config.model_type)
    if layer is None or forward is None or drops_out(model):
        return

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids = (torch.arange(8, device=model.device) % model.config.vocab_size).view(2, 4)
        probe = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        index = torch.tensor([1, 2, 6], device=ids.device)
        yield states_at(model, probe, index), hidden_states(model, probe).flatten(0, 1)[index]

    # Of the instance, not a class of its own: FSDP2 wraps layers by the names of their classes.
    vars(layer).update({"forward": functools.partial(forward, layer), _ASKED: True})
    if not agree(model, compared):
        del vars(layer)["forward"], vars(layer)[_ASKED]


def _last_layer(model: PreTrainedModel) -> nn.Module | None:
    backbone = backbone_of(model)
    stack = getattr(getattr(backbone, "encoder", backbone), "layer", getattr(backbone, "layers", None))
    return stack[-1] if isinstance(stack, nn.ModuleList) and len(stack) else None


def _norm_after(
    layer: Any,
    hidden_BSH: Tensor,
    attention_mask: Any = None,
    *args: Any,
    asked_index: Tensor | None = None,
    **kwargs: Any,
) -> Any:
    """The layer of BERT, RoBERTa, ELECTRA."""
    if asked_index is None:
        return type(layer).forward(layer, hidden_BSH, attention_mask, *args, **kwargs)
    context_BSH = layer.attention.self(hidden_BSH, attention_mask)[0]
    asked_1NH = layer.attention.output(_at(context_BSH, asked_index), _at(hidden_BSH, asked_index))
    return layer.output(layer.intermediate(asked_1NH), asked_1NH)


def _norm_before(layer: Any, hidden_BSH: Tensor, *args: Any, asked_index: Tensor | None = None, **kwargs: Any) -> Any:
    """The layer of ModernBERT."""
    if asked_index is None:
        return type(layer).forward(layer, hidden_BSH, *args, **kwargs)
    mixed_BSH = layer.attn(layer.attn_norm(hidden_BSH), *args, **kwargs)[0]
    asked_1NH = _at(hidden_BSH, asked_index) + _at(mixed_BSH, asked_index)
    return asked_1NH + layer.mlp(layer.mlp_norm(asked_1NH))


def _at(states_BSH: Tensor, index_N: Tensor) -> Tensor:
    """[1, N, H]."""
    return states_BSH.flatten(0, 1)[index_N][None]


# By name, since fresh weights hardly tell: what differs by where a norm stands is lost in the rounding of a probe.
_KINDS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra", "data2vec-text"), _norm_after),
    "modernbert": _norm_before,
}
"""Type of a model -> how its layers are computed at some positions."""
