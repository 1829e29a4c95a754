"""Telling the order of sentences, beside masked language modelling or alone (Lan et al., 2020, ALBERT).

Shape suffixes: B rows, S tokens, H width, N masked targets, V vocabulary, M documents with an order target, C orders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForMaskedLM, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.heads import prediction_head, scored_logits
from sslnlp.last_layer import ask_last_layer, states_at
from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import row_count
from sslnlp.objectives.linear_cross_entropy import Scored
from sslnlp.objectives.scoring import by_head, by_logits
from sslnlp.registry import bound_class
from sslnlp.types import Batch, StepOutput

MASKED = frozenset({"input_ids", "attention_mask", "labels", "target_index"})


class SentenceOrder(Objective):
    """Masked LM, and whether the two halves of a document stand in their order (arXiv:1909.11942).

    Reads what `collators.sentence_order` makes: `input_ids`, `attention_mask`, `labels` [B, S], `target_index` [N],
    `order_index` [M] (flat places of the first tokens of documents), `order_labels` [M], and `document_ids`,
    `position_ids` of packed rows. The loss in nats is `masked_weight` × the mean over masked tokens + `order_weight` ×
    the mean over documents; uniform logits give ln V and ln 2. The order is read from the first token's last hidden
    state by Linear-tanh-Linear, which is not exported: [CLS] is what keeps it.

    With `masked_weight=0` the order is the only task (for rows that are not masked, set `collator.rate=0` too): the
    vocabulary head gets no gradient and stays as it was.
    """

    name: ClassVar[str] = "sentence_order"
    needs: ClassVar[frozenset[str]] = MASKED | {"order_index", "order_labels"}
    collator: ClassVar[str] = "sentence_order"
    wraps = AutoModelForMaskedLM
    _target: ClassVar[str] = "order"

    def __init__(self, model: PreTrainedModel, *, order_weight: float = 1.0, masked_weight: float = 1.0) -> None:
        super().__init__(model)
        if order_weight <= 0:
            raise UserError(f"objective.order_weight is above 0, got {order_weight}; objective masked_lm has no order")
        if masked_weight < 0:
            raise UserError(f"objective.masked_weight is 0 or more, got {masked_weight}")
        self.order_weight, self.masked_weight = order_weight, masked_weight
        self.order_head = order_head(model.config.hidden_size, 2).to(model.dtype)
        self.head = prediction_head(model)
        ask_last_layer(model)
        if not masked_weight:
            backbone = set(model.base_model.parameters())
            for parameter in set(model.parameters()) - backbone:
                parameter.requires_grad_(False)

    def forward(self, batch: Batch) -> StepOutput:
        order_M = batch[f"{self._target}_index"]
        asked = torch.cat([order_M, batch["target_index"]]) if self.masked_weight and self.head is not None else order_M
        states = states_at(self.model, batch, asked)
        order = by_logits(self.order_head(states[: len(order_M)]), batch[f"{self._target}_labels"])
        parts = {"order": (self.order_weight, order)}
        if self.masked_weight:
            parts = {"masked": (self.masked_weight, self._masked(states[len(order_M) :], batch)), **parts}
        terms, metrics = [], {}
        accuracies = {"masked": "accuracy", "order": "order_accuracy"}
        for name, (weight, found) in parts.items():
            terms.append(weight * found.loss)
            metrics[f"{name}_loss"] = torch.stack([found.losses.sum(), found.number])
            metrics[accuracies[name]] = torch.stack([found.hits.sum(), found.number])
        return StepOutput(torch.stack(terms).sum(), metrics, torch.stack(terms))

    def _masked(self, states_NH: Tensor, batch: Batch) -> Scored:
        """The tokens at the masked places, from their states."""
        target_N = batch["labels"].flatten()[batch["target_index"]]
        if self.head is not None:
            return by_head(self.head, self.head.features(states_NH), target_N)
        # The head is not to be had: a second pass.
        return by_logits(scored_logits(self.model, None, batch, batch["target_index"]), target_N)

    def num_targets(self, batch: Batch) -> Tensor:
        targets = [*(["target_index"] if self.masked_weight else []), f"{self._target}_labels"]
        return torch.stack([row_count(batch[name]) for name in targets])


class SegmentOrder(SentenceOrder):
    """As `sentence_order`, with `segments` parts in one of `segments`! orders; uniform logits give ln n!.

    Reads what `collators.segment_order` makes, whose option of that name follows `segments`.
    """

    name: ClassVar[str] = "segment_order"
    needs: ClassVar[frozenset[str]] = MASKED | {"segments_index", "segments_labels"}
    collator: ClassVar[str] = "segment_order"
    _target: ClassVar[str] = "segments"
    number: ClassVar[int] = 3
    """Segments, where the options say nothing else."""

    @classmethod
    def bound(cls, options: Mapping[str, Any]) -> type[Objective]:
        """The class of this number of segments: the options of its collator depend on it."""
        if not isinstance(number := options.get("segments"), int):
            return cls
        return bound_class(cls, options, number=number)

    @classmethod
    def collator_options(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options with the number of segments of the objective."""
        if options.get("segments", cls.number) != cls.number:
            raise UserError(
                f"collator.segments={options['segments']} does not go with objective.segments={cls.number}; "
                "give objective.segments alone"
            )
        return {**options, "segments": cls.number}

    def __init__(
        self, model: PreTrainedModel, *, segments: int = 3, order_weight: float = 1.0, masked_weight: float = 1.0
    ) -> None:
        super().__init__(model, order_weight=order_weight, masked_weight=masked_weight)
        if not 2 <= segments <= 5:
            raise UserError(f"objective.segments is a number from 2 to 5, got {segments}")
        self.order_head = order_head(model.config.hidden_size, math.factorial(segments)).to(model.dtype)


def order_head(width: int, orders: int) -> nn.Sequential:
    """A classifier of vectors [M, H] -> [M, C], shaped as BERT's pooler and the layer on it."""
    return nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, orders))
