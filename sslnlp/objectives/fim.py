"""Filling in the middle (Bavarian et al., 2022): a left-to-right model that also writes between two given texts."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from sslnlp.objectives.causal_lm import CausalLM
from sslnlp.objectives.functional import IGNORED, sum_and_count
from sslnlp.types import Batch, StepOutput


class Fim(CausalLM):
    """Next-token cross-entropy in nats per token, over plain texts and over texts whose middle stands behind their end.

    Reads `input_ids`, `attention_mask`, `labels` [B, S] as `causal_lm` does, and `middle`, `infilling` bool [B, S]. The
    model, the loss and the export are those of `causal_lm`; `fim` differs in its rows alone. Reports `infill_loss` and
    `infill_accuracy` of the tokens of a middle, which are read with both sides known, and `plain_loss` of the pieces
    that were left as they are: that one, not the loss, stands beside a causal model's. No bits per byte: a text whose
    cuts are given away is not coded whole. Measure the export with `causal_lm` for that.
    """

    name: ClassVar[str] = "fim"
    needs: ClassVar[frozenset[str]] = CausalLM.needs | {"middle", "infilling"}
    collator: ClassVar[str] = "fim"
    likelihood: ClassVar[bool] = False

    def forward(self, batch: Batch) -> StepOutput:
        found = self._scored(batch)
        asked_N, middle_N, infilling_N = (
            F.pad(values_BS[:, 1:], (0, 1)).flatten()
            for values_BS in (batch["labels"] != IGNORED, batch["middle"], batch["infilling"])
        )
        metrics = {
            "accuracy": found.accuracy,
            "infill_accuracy": sum_and_count(found.hits, middle_N),
            "infill_loss": sum_and_count(found.losses, middle_N),
            "plain_loss": sum_and_count(found.losses, asked_N & ~infilling_N),
        }
        return StepOutput(found.loss, metrics)
