"""Texts of several classes at once: one yes or no for each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from sslnlp.objectives.text_head import TextHead
from sslnlp.types import Batch, StepOutput


class MultiLabel(TextHead):
    """Binary cross-entropy of each of the `config.num_labels` classes, averaged over them, with the stock head.

    Rows: a text (or two) and the list of its classes, which may be empty. The export says
    `problem_type = "multi_label_classification"`, so that `pipeline` answers with sigmoids.
    """

    name: ClassVar[str] = "multi_label"
    collator: ClassVar[str] = "multi_label"
    measures: ClassVar[tuple[str, ...]] = ("multi_label",)
    best: ClassVar[tuple[str, str]] = ("ranking_precision", "max")

    @classmethod
    def config_fields(cls, label_names: Sequence[str]) -> dict[str, Any]:
        return super().config_fields(label_names) | {"problem_type": "multi_label_classification"}

    def num_targets(self, batch: Batch) -> Tensor:
        """The texts of the batch that have a label."""
        labels_BC: Tensor = batch["labels"]
        return (labels_BC != -100).any(-1).sum()

    def outcome(self, logits_BC: Tensor, batch: Batch) -> StepOutput:
        """Mean loss over the rows, and `accuracy`: the share of all yes-or-no answers that are right at one half."""
        labels_BC = batch["labels"]
        loss = F.binary_cross_entropy_with_logits(logits_BC, labels_BC)
        right: Tensor = ((logits_BC.detach() > 0) == (labels_BC > 0.5)).float().mean()
        return StepOutput(loss, {"accuracy": right})
