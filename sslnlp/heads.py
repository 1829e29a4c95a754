"""The vocabulary head of a stock language model, apart from the model: logits where they are scored, and nowhere else.

Shape suffixes: B rows, S tokens, H width, N scored positions, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sslnlp.last_layer import states_at
from sslnlp.nn import rows_missing
from sslnlp.packed import agree, hidden_states, model_inputs, seq2seq_logits, seq2seq_states
from sslnlp.types import Encoding


@dataclass(frozen=True)
class Head:
    """The vocabulary head of a stock language model: logits are `features(hidden) @ weight.T + bias`."""

    features: Callable[[Tensor], Tensor]
    """[..., H] -> [..., H]: what stands between the backbone and the vocabulary."""
    projection: nn.Linear

    def __call__(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., H] -> logits [..., V]."""
        logits: Tensor = self.projection(self.features(hidden))
        return logits


_GROWN = 100.0
"""What logits are multiplied by where a head is looked for."""


def prediction_head(model: PreTrainedModel) -> Head | None:
    """The vocabulary head of a stock masked or causal LM, apart from the model.

    Found by the attribute names stock models use, then *checked* against the model's own logits on a probe; None when
    the model does something else with its hidden states (scaling, soft-capping), so that callers fall back to the
    whole model.
    """
    # Kept as a plain object: a module kept as an attribute would enter the objective's state a second time.
    head = _find_head(model)
    if head is None or not isinstance(head.projection, nn.Linear):
        return None

    def compared() -> Iterator[tuple[Tensor, Tensor]]:
        ids = torch.arange(4, device=next(model.parameters()).device)[None] % model.config.vocab_size
        probe = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        yield head(hidden_states(model, probe)) / _GROWN, model(**probe).logits / _GROWN

    # Of fresh weights all logits are small, where a soft cap changes nothing; it would once they have grown.
    grown = head.projection.register_forward_hook(lambda part, given, logits: logits * _GROWN)
    try:
        return head if agree(model, compared) else None
    finally:
        grown.remove()


def _find_head(model: PreTrainedModel) -> Head | None:
    parts: Any = model
    if hasattr(parts, "head") and hasattr(parts, "decoder"):  # ModernBERT
        return Head(parts.head, parts.decoder)
    if hasattr(parts, "generator_predictions"):  # ELECTRA
        return Head(parts.generator_predictions, parts.generator_lm_head)
    if hasattr(getattr(getattr(parts, "cls", None), "predictions", None), "transform"):  # BERT
        return Head(parts.cls.predictions.transform, parts.cls.predictions.decoder)
    found: Any = getattr(parts, "lm_head", None)
    if isinstance(found, nn.Linear):  # decoders
        return Head(nn.Identity(), found)
    if found is not None and hasattr(found, "dense") and hasattr(found, "layer_norm"):  # RoBERTa
        if found.decoder.bias is None and getattr(found, "bias", None) is not None:
            return None  # ESM adds a bias of its own, which the check below cannot see while it is zero
        return Head(_InTurn((found.dense, nn.GELU(), found.layer_norm)), found.decoder)
    if hasattr(parts, "vocab_projector"):  # DistilBERT
        return Head(_InTurn((parts.vocab_transform, parts.activation, parts.vocab_layer_norm)), parts.vocab_projector)
    found = getattr(parts, "predictions", None)
    if hasattr(found, "dense") and hasattr(found, "LayerNorm"):  # ALBERT
        return Head(_InTurn((found.dense, found.activation, found.LayerNorm)), found.decoder)
    return None


def seq2seq_head(model: PreTrainedModel) -> Head | None:
    """The same of an encoder-decoder, for `packed.seq2seq_states`. T5 scales these where its tables are tied."""
    projection = getattr(model, "lm_head", None)
    bias_V = getattr(model, "final_logits_bias", None)  # of BART and its family; not trained, and mostly zero
    if not isinstance(projection, nn.Linear) or (bias_V is not None and bias_V.any()):
        return None
    ids = torch.arange(4, device=projection.weight.device)[None] % model.config.vocab_size
    one = torch.zeros_like(ids)
    probe = {"input_ids": ids, "labels": ids, "position_ids": ids, "decoder_position_ids": ids}
    probe |= {"document_ids": one, "decoder_document_ids": one}
    grown = projection.register_forward_hook(lambda part, given, logits: logits * _GROWN)
    try:
        for scale in (1.0, float(projection.in_features**-0.5)):
            head = Head(_Scaled(scale), projection)
            if agree(model, lambda head=head: [(head(seq2seq_states(model, probe)), seq2seq_logits(model, probe))]):  # type: ignore[misc]
                return head
        return None
    finally:
        grown.remove()


@dataclass(frozen=True)
class _Scaled:
    by: float

    def __call__(self, hidden: Tensor) -> Tensor:
        return hidden if self.by == 1 else hidden * self.by


@dataclass(frozen=True)
class _InTurn:
    """What a head does before the vocabulary; no module of its own. A function that closed over the head would go on
    with it in a copy of the objective, and could not be pickled."""

    parts: tuple[nn.Module, ...]

    def __call__(self, hidden: Tensor) -> Tensor:
        return functools.reduce(lambda state, part: part(state), self.parts, hidden)


def scored_features(model: PreTrainedModel, head: Head, encoding: Encoding, index_N: Tensor | None = None) -> Tensor:
    """What `head.projection` multiplies, [N, H]: at the flat positions `index_N` of [B × S], or at all of them."""
    if index_N is None:
        return head.features(hidden_states(model, encoding).flatten(0, 1))
    asked = states_at(model, encoding, index_N)
    if missing := rows_missing(len(asked), asked.device, asked.dtype):
        return head.features(nn.functional.pad(asked, (0, 0, 0, missing)))[: len(asked)]
    return head.features(asked)


def scored_logits(
    model: PreTrainedModel, head: Callable[[Tensor], Tensor] | None, encoding: Encoding, index_N: Tensor
) -> Tensor:
    """Logits [N, V] at the flat positions `index_N` of [B × S]: the head is computed only there where it can be."""
    if head is not None:
        return head(states_at(model, encoding, index_N))
    inputs = model_inputs(model, encoding)
    logits: Tensor = model(input_ids=encoding["input_ids"], **inputs).logits
    return logits.flatten(0, 1)[index_N]
