"""Classification of whole texts: fine-tuning is the same loop with labels that people gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.objectives import functional
from sslnlp.objectives.text_head import TextHead, rescaled
from sslnlp.types import Batch, StepOutput


class Classification(TextHead):
    """Cross-entropy over `config.num_labels` classes, with the model's own classification head.

    Rows: a text (or two) and one label. In training the loss may weigh classes and smooth labels; held out it is the
    plain cross-entropy, so that figures of runs with different options compare. Weighted or not, the loss is a mean
    over rows (not over weights), which keeps it exact under accumulation.

    Options:
        class_weights: one factor a class, multiplied into its rows' loss. Mean 1 keeps the learning rate meaningful.
        label_smoothing: share of the target spread over all classes, in [0, 1).
        ordinal: the classes are steps of a scale (stars, grades), in the order of their names: training adds the
            ranked probability score (Epstein, 1969), which costs a prediction more the further off it lies. Held-out
            figures gain the mean distance in steps and the quadratic weighted kappa.
    """

    name: ClassVar[str] = "classification"
    collator: ClassVar[str] = "classification"
    measures: tuple[str, ...] = ("classification",)  # type: ignore[misc]  # of the class; an ordinal one has more
    best: ClassVar[tuple[str, str]] = ("macro_f1", "max")
    class_weights: Tensor | None

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        ordinal: bool = False,
    ) -> None:
        super().__init__(model)
        classes = int(model.config.num_labels)
        if classes < 2:
            raise UserError(f"classification needs at least 2 classes, the data or the model has {classes}")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"objective.label_smoothing={label_smoothing} must be at least 0 and below 1")
        if class_weights is not None and (len(class_weights) != classes or min(class_weights) < 0):
            raise UserError(f"objective.class_weights must be {classes} numbers of at least 0, one for each class")
        self.label_smoothing, self.ordinal = label_smoothing, ordinal
        if ordinal:
            self.measures = ("classification", "ordinal")
        self.temperature = 1.0
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def calibrate(self, temperature: float) -> None:
        self.temperature = temperature

    @property
    def exported(self) -> PreTrainedModel:
        """The model, the temperature of its probabilities folded into its last linear map."""
        return self.model if self.temperature == 1 else rescaled(self.model, 1 / self.temperature)

    def outcome(self, logits_BC: Tensor, batch: Batch) -> StepOutput:
        """Mean loss over the rows, and `accuracy`: the share of rows whose highest logit is the label's."""
        labels_B = batch["labels"]
        weight_C = self.class_weights if self.training else None
        total = F.cross_entropy(
            logits_BC,
            labels_B,
            weight=weight_C,
            label_smoothing=self.label_smoothing if self.training else 0.0,
            reduction="sum",
        )
        if self.ordinal and self.training:
            scores_B = functional.ranked_probability_score(logits_BC, labels_B)
            total = total + (scores_B if weight_C is None else scores_B * weight_C[labels_B.clamp(min=0)]).sum()
        rows = self.num_targets(batch).clamp(min=1)
        right = (logits_BC.detach().argmax(-1) == labels_B).sum()
        return StepOutput(total / rows, {"accuracy": right / rows})
