"""Masked and causal language modelling in one decoder-class model (GPT-BERT)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.objectives.causal_lm import CausalLM
from sslnlp.objectives.functional import IGNORED, accuracy, cross_entropy
from sslnlp.types import Batch, StepOutput


class Hybrid(CausalLM):
    """One set of weights that fills masks from both sides and writes from left to right (Charpentier and Samuel, 2024,
    arXiv:2410.24159).

    Reads what `collators.hybrid` makes: rows that are `bidirectional` (bool [B, S]) are masked ones. A label is
    predicted from the position before it in either kind, by the same head. The loss is `masked_weight` × the mean over
    masked targets + (1 - `masked_weight`) × the mean over causal ones.

    The export is a stock decoder. Loaded as it is, it generates; with `is_causal=False` in its config it reads in both
    directions, and the logits at s - 1 fill the mask at s.
    """

    name: ClassVar[str] = "hybrid"
    needs: ClassVar[frozenset[str]] = CausalLM.needs | {"bidirectional"}
    collator: ClassVar[str] = "hybrid"
    likelihood: ClassVar[bool] = False
    modes: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"causal": {"is_causal": True}, "bidirectional": {"is_causal": False}}
    )

    def __init__(self, model: PreTrainedModel, *, masked_weight: float = 0.5) -> None:
        super().__init__(model)
        if not 0 <= masked_weight <= 1:
            raise UserError(f"objective.masked_weight is a share between 0 and 1, got {masked_weight}")
        self.masked_weight = masked_weight

    def forward(self, batch: Batch) -> StepOutput:
        logits_NV = self._logits(batch)[:, :-1].flatten(0, 1)
        weights = {"masked": self.masked_weight, "causal": 1 - self.masked_weight}
        terms, metrics = [], {}
        for (name, weight), target_N in zip(weights.items(), self._targets(batch), strict=True):
            loss = cross_entropy(logits_NV, target_N)
            count = (target_N != IGNORED).sum()
            terms.append(weight * loss)
            metrics[f"{name}_loss"] = torch.stack([loss.detach() * count, count])
            metrics[f"{name}_accuracy"] = torch.stack([accuracy(logits_NV, target_N) * count, count])
        return StepOutput(terms[0] + terms[1], metrics, torch.stack(terms))

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.stack([(target_N != IGNORED).sum() for target_N in self._targets(batch)])

    def _targets(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The labels of masked and of causal rows, each [B × (S - 1)] with -100 for what is of the other kind."""
        masked_B1 = batch["bidirectional"].any(1, keepdim=True)
        labels = batch["labels"][:, 1:]
        return labels.masked_fill(~masked_B1, IGNORED).flatten(), labels.masked_fill(masked_B1, IGNORED).flatten()
