"""Classification of whole texts: fine-tuning is the same loop with labels that people gave."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.objectives.base import Objective
from sslnlp.types import Batch, StepOutput


class Classification(Objective):
    """Cross-entropy over `config.num_labels` classes, with the model's own classification head.

    Rows: a text (or two) and one label. In training the loss may weigh classes and smooth labels; held out it is the
    plain cross-entropy, so that figures of runs with different options compare. Weighted or not, the loss is a mean
    over rows (not over weights), which keeps it exact under accumulation.

    Options:
        class_weights: one factor a class, multiplied into its rows' loss. Mean 1 keeps the learning rate meaningful.
        label_smoothing: share of the target spread over all classes, in [0, 1).
    """

    name: ClassVar[str] = "classification"
    needs: ClassVar[frozenset[str]] = frozenset({"input_ids", "attention_mask", "labels"})
    collator: ClassVar[str] = "classification"
    wraps: ClassVar[Any] = AutoModelForSequenceClassification
    measures: ClassVar[tuple[str, ...]] = ("classification",)
    best: ClassVar[tuple[str, str]] = ("macro_f1", "max")
    class_weights: Tensor | None

    def __init__(
        self, model: PreTrainedModel, *, class_weights: Sequence[float] | None = None, label_smoothing: float = 0.0
    ) -> None:
        super().__init__(model)
        classes = int(model.config.num_labels)
        if classes < 2:
            raise UserError(f"classification needs at least 2 classes, the data or the model has {classes}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"objective.label_smoothing={label_smoothing} must be at least 0 and below 1")
        if class_weights is not None and (len(class_weights) != classes or min(class_weights) < 0):
            raise UserError(f"objective.class_weights must be {classes} numbers of at least 0, one for each class")
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)
        self._accepted = _model_inputs(model)

    def forward(self, batch: Batch) -> StepOutput:
        """Mean loss over the rows, and `accuracy`: the share of rows whose highest logit is the label's."""
        logits_BC, labels_B = self._logits(batch), batch["labels"]
        total = F.cross_entropy(
            logits_BC,
            labels_B,
            weight=self.class_weights if self.training else None,
            label_smoothing=self.label_smoothing if self.training else 0.0,
            reduction="sum",
        )
        rows = self.num_targets(batch).clamp(min=1)
        right = (logits_BC.detach().argmax(-1) == labels_B).sum()
        return StepOutput(total / rows, {"accuracy": right / rows})

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """`logits` float [B, C] and `labels` int64 [B]."""
        return {"logits": self._logits(batch), "labels": batch["labels"]}

    def _logits(self, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in self._accepted if name in batch}
        logits: Tensor = self.model(**inputs).logits.float()
        return logits


def _model_inputs(model: PreTrainedModel) -> tuple[str, ...]:
    """The batch's keys that this architecture takes.

    Tokenizers name `token_type_ids` for models that have no segments (ModernBERT) or only one (RoBERTa, where the
    second text's id would fall outside the table).
    """
    names = ["input_ids", "attention_mask"]
    takes = inspect.signature(model.forward).parameters
    if "token_type_ids" in takes and getattr(model.config, "type_vocab_size", 0) > 1:
        names.append("token_type_ids")
    return tuple(names)
