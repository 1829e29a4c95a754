"""A number for each text: a rating, a similarity, a price."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.objectives.functional import row_count
from sslnlp.objectives.text_head import TextHead, check_one_output, output_layer, rescaled
from sslnlp.types import Batch, StepOutput

log = logging.getLogger(__name__)

FAR = 3
"""Deviations that labels may lie from 0 for a head without a bias."""


class Regression(TextHead):
    """Squared error of a stock head with one output, against the numbers at mean 0 and deviation 1.

    So learning rates mean the same whatever the unit; the export answers in the unit of the data (the scale is folded
    into the last linear map). Rows: a text (or two) and a number.

    Options, both those of the training rows unless they are given:
        mean: of the numbers. A head without a bias (Llama's) cannot carry it: it learns from 0.
        std: their standard deviation, above 0.
    """

    name: ClassVar[str] = "regression"
    collator: ClassVar[str] = "regression"
    measures: ClassVar[tuple[str, ...]] = ("regression",)

    def __init__(self, model: PreTrainedModel, *, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__(model)
        if not std > 0:
            raise UserError(f"objective.std={std} must be above 0")
        check_one_output(model)
        has_bias = output_layer(model).bias is not None
        if not has_bias and abs(mean) > FAR * std:
            log.warning(
                "the head of %s has no bias, and the labels lie around %.4g with a deviation of %.4g, which it would "
                "have to learn first: take %.4g from every label, or start from an encoder",
                type(model).__name__, mean, std, mean,
            )  # fmt: skip
        self.mean, self.std = mean if has_bias else 0.0, std

    @classmethod
    def config_fields(cls, label_names: Sequence[str]) -> dict[str, Any]:
        return {"num_labels": 1, "problem_type": "regression"}

    @classmethod
    def settled_by(cls, facts: Mapping[str, Any]) -> dict[str, Any]:
        return {name: facts[f"label_{name}"] for name in ("mean", "std") if f"label_{name}" in facts}

    def outcome(self, logits_BC: Tensor, batch: Batch) -> StepOutput:
        """Mean squared error over the rows, in variances of the labels: always the mean would be 1."""
        target_B = (batch["labels"] - self.mean) / self.std
        return StepOutput((logits_BC[:, 0] - target_B).square().mean(), {})

    def num_targets(self, batch: Batch) -> Tensor:
        """The texts of the batch."""
        return row_count(batch["labels"])

    def predicted(self, logits_BC: Tensor, batch: Batch) -> dict[str, Tensor]:
        """`predicted` and `labels`, float [B], in the unit of the data."""
        return {"predicted": logits_BC[:, 0] * self.std + self.mean, "labels": batch["labels"]}

    @property
    def exported(self) -> PreTrainedModel:
        return rescaled(self.model, self.std, self.mean)
