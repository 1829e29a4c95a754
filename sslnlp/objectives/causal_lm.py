"""Causal language modelling: each token from those before it in its document."""

from __future__ import annotations

from typing import ClassVar

from transformers import AutoModelForCausalLM, PreTrainedModel

from sslnlp.models import prediction_head, scored_logits
from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import accuracy, cross_entropy
from sslnlp.types import Batch, StepOutput


class CausalLM(Objective):
    """Next-token cross-entropy in nats per token; the mean over scored tokens.

    Reads `input_ids`, `attention_mask` and `labels` [B, S]. Labels stand at their own token, as in `transformers`
    (label s is predicted from position s - 1); -100 is not scored. Every token of the text is predicted exactly once,
    so the held-out loss is the text's code length and converts to bits per byte.
    """

    name: ClassVar[str] = "causal_lm"
    needs: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels"})
    collator: ClassVar[str] = "causal_lm"
    wraps = AutoModelForCausalLM
    causal: ClassVar[bool] = True
    likelihood: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.head = prediction_head(model)

    def forward(self, batch: Batch) -> StepOutput:
        labels = batch["labels"].flatten()
        # Position 0 of a row is never scored (nothing precedes it), so `index - 1` stays inside the row.
        index_N = (labels != -100).nonzero().squeeze(1)
        logits_NV = scored_logits(self.model, self.head, batch, index_N - 1)
        return StepOutput(
            cross_entropy(logits_NV, labels[index_N]), {"accuracy": accuracy(logits_NV, labels[index_N])}
        )
