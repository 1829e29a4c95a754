"""Masked language modelling (Devlin et al., 2019): rebuild the corrupted tokens from both sides."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel

from sslnlp.heads import prediction_head, scored_features, scored_logits
from sslnlp.last_layer import ask_last_layer
from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import row_count
from sslnlp.objectives.scoring import by_head, by_logits
from sslnlp.types import Batch, StepOutput


class MaskedLM(Objective):
    """Cross-entropy at the corrupted positions only; the vocabulary head is computed nowhere else, and of
    the encoders in `last_layer` what comes after the attention of their last layer.

    Reads `input_ids`, `attention_mask` [B, S], `labels` [B, S] (-100 elsewhere), `target_index` [N] (flat positions of
    the targets) and, for packed rows, `document_ids`, `position_ids`. Loss in nats a target; uniform logits give ln V.

    Args:
        model: any stock model with a masked-LM head.
        label_smoothing: share of the target mass spread over the vocabulary while training.
    """

    name: ClassVar[str] = "masked_lm"
    needs: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels", "target_index"})
    collator: ClassVar[str] = "masked_lm"
    wraps = AutoModelForMaskedLM

    def __init__(self, model: PreTrainedModel, *, label_smoothing: float = 0.0) -> None:
        super().__init__(model)
        self.label_smoothing = label_smoothing
        self.head = prediction_head(model)
        ask_last_layer(model)

    def forward(self, batch: Batch) -> StepOutput:
        index_N = batch["target_index"]
        target_N = batch["labels"].flatten()[index_N]
        smoothing = self.label_smoothing if self.training else 0.0
        if self.head is not None:
            features_NH = scored_features(self.model, self.head, batch, index_N)
            found = by_head(self.head, features_NH, target_N, label_smoothing=smoothing)
        else:
            logits_NV = scored_logits(self.model, None, batch, index_N)
            found = by_logits(logits_NV, target_N, label_smoothing=smoothing)
        return StepOutput(found.loss, {"accuracy": found.accuracy})

    def num_targets(self, batch: Batch) -> Tensor:
        return row_count(batch["target_index"])
