"""Causal language modelling: each token from those before it in its document."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.heads import prediction_head, scored_features
from sslnlp.objectives.base import Objective
from sslnlp.objectives.functional import IGNORED
from sslnlp.objectives.linear_cross_entropy import Scored
from sslnlp.objectives.scoring import by_head, by_logits
from sslnlp.packed import model_inputs, sees_ahead
from sslnlp.tokenizer import Style
from sslnlp.types import Batch, StepOutput


class CausalLM(Objective):
    """Next-token cross-entropy in nats per token; the mean over scored tokens.

    Reads `input_ids`, `attention_mask` and `labels` [B, S]. Labels stand at their own token, as in `transformers`
    (label s is predicted from position s - 1); -100 is not scored. Every token of the text is predicted exactly once,
    so the held-out loss is the text's code length and converts to bits per byte.

    Raises `UserError` for a model that sees the tokens ahead, which is tried at once.
    """

    name: ClassVar[str] = "causal_lm"
    needs: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels"})
    collator: ClassVar[str] = "causal_lm"
    wraps = AutoModelForCausalLM
    framing: ClassVar[Style] = "decoder"
    shifted: ClassVar[bool] = True
    likelihood: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        if sees_ahead(model):
            raise UserError(
                f"{type(model).__name__} ({model.config.model_type!r}) reads in both directions and would see what it "
                "is to predict; choose a decoder, or load the model with is_decoder=True"
            )
        self.head = prediction_head(model)

    def forward(self, batch: Batch) -> StepOutput:
        found = self._scored(batch)
        return StepOutput(found.loss, {"accuracy": found.accuracy})

    def _scored(self, batch: Batch) -> Scored:
        """Every position [B × S], which is asked for the token behind it."""
        # Nearly every token is a target, so all positions are scored and the few others left out of the sum: shapes
        # stay the same from batch to batch, where gathering would make a new one, and a new kernel, each time.
        target_N = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED).flatten()
        if self.head is not None:
            return by_head(self.head, scored_features(self.model, self.head, batch), target_N)
        return by_logits(self._logits(batch).flatten(0, 1), target_N)

    def _logits(self, batch: Batch) -> Tensor:
        """[B, S, V]."""
        inputs = model_inputs(self.model, batch)
        logits: Tensor = self.model(input_ids=batch["input_ids"], use_cache=False, **inputs).logits
        return logits
