"""Filling in the middle (Bavarian et al., 2022): a left-to-right model that also writes between two given texts."""

from __future__ import annotations

from typing import ClassVar

import torch.nn.functional as F

from sslnlp.objectives.causal_lm import CausalLM
from sslnlp.objectives.functional import IGNORED, hits, sum_and_count
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
        target_N = batch["labels"][:, 1:].flatten()
        logits_NV = self._logits(batch)[:, :-1].flatten(0, 1)
        middle_N, infilling_N = (batch[name][:, 1:].flatten() for name in ("middle", "infilling"))
        plain_N = ~infilling_N & (target_N != IGNORED)
        # One pass gives the loss and its parts; targets that are not asked count 0.
        losses_N = F.cross_entropy(logits_NV.float(), target_N, reduction="none", ignore_index=IGNORED)
        hits_N = hits(logits_NV, target_N)
        metrics = {
            "accuracy": hits_N.sum() / (target_N != IGNORED).sum().clamp(min=1),
            "infill_accuracy": sum_and_count(hits_N, middle_N),
            "infill_loss": sum_and_count(losses_N.detach(), middle_N),
            "plain_loss": sum_and_count(losses_N.detach(), plain_N),
        }
        return StepOutput(losses_N.sum() / (target_N != IGNORED).sum().clamp(min=1), metrics)
