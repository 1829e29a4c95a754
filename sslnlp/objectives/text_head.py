"""What the objectives share that put a stock classification head on texts, or on the words of texts."""

from __future__ import annotations

import copy
import inspect
from abc import abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.objectives.base import Objective
from sslnlp.types import Batch, StepOutput


class TextHead(Objective):
    """A model with its own classification head, of whole texts; `predict` gives its `logits` and the `labels`."""

    needs: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels"})
    wraps: ClassVar[Any] = AutoModelForSequenceClassification

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self._accepted = model_inputs(model)

    def logits(self, batch: Batch) -> Tensor:
        """float32 [B, C], C = `config.num_labels`; [B, S, C] of a head of words."""
        inputs = {name: batch[name] for name in self._accepted if name in batch}
        logits_BC: Tensor = self.model(**inputs).logits.float()
        return logits_BC

    @abstractmethod
    def outcome(self, logits_BC: Tensor, batch: Batch) -> StepOutput:
        """The loss, a mean over the rows, and the metrics of their logits."""

    def forward(self, batch: Batch) -> StepOutput:
        return self.outcome(self.logits(batch), batch)

    def scored(self, batch: Batch) -> tuple[StepOutput, dict[str, Tensor]]:
        logits_BC = self.logits(batch)
        return self.outcome(logits_BC, batch), self.predicted(logits_BC, batch)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        return self.predicted(self.logits(batch), batch)

    def predicted(self, logits_BC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """What the measures read: `logits` float [B, C] and `labels`, as the collator made them."""
        return {"logits": logits_BC, "labels": batch["labels"]}


def model_inputs(model: PreTrainedModel) -> tuple[str, ...]:
    """The batch's keys that this architecture takes.

    Tokenizers name `token_type_ids` for models that have no segments (ModernBERT) or only one (RoBERTa, where the
    second text's id would fall outside the table).
    """
    names = ["input_ids", "attention_mask"]
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in takes and getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return tuple(names)


def check_one_output(model: PreTrainedModel) -> None:
    """Refuse a head of several outputs where one number is asked for."""
    if (outputs := int(model.config.num_labels)) != 1:
        raise UserError(
            f"the head of {type(model).__name__} has {outputs} outputs, and one is asked for; load it with num_labels=1"
        )


def output_layer(model: PreTrainedModel) -> nn.Linear:
    """The linear map that a stock head ends with. Raises `UserError` for a head that has none."""
    outputs = int(model.config.num_labels)
    ends = [part for part in model.modules() if isinstance(part, nn.Linear) and part.out_features == outputs]
    if not ends:
        raise UserError(f"the head of {type(model).__name__} does not end with a linear map of {outputs} outputs")
    return ends[-1]


def rescaled(model: PreTrainedModel, scale: float, shift: float = 0.0) -> PreTrainedModel:
    """A copy whose logits are `scale` times those of `model`, plus `shift`: folded into its last linear map."""
    copied = copy.deepcopy(model)
    last = output_layer(copied)
    with torch.no_grad():
        last.weight.mul_(scale)
        if last.bias is not None:
            last.bias.mul_(scale).add_(shift)
    return copied
