"""Masked and causal language modelling in one decoder-class model (GPT-BERT)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.heads import scored_features
from sslnlp.modes import reads_ahead
from sslnlp.objectives.causal_lm import CausalLM
from sslnlp.objectives.functional import row_count
from sslnlp.objectives.linear_cross_entropy import Scored
from sslnlp.objectives.scoring import by_head, by_logits
from sslnlp.types import Batch, StepOutput


class Hybrid(CausalLM):
    """One set of weights that fills masks from both sides and writes from left to right (Charpentier and Samuel, 2024,
    arXiv:2410.24159).

    Reads `input_ids`, `attention_mask`, `labels` [B, S] as `causal_lm` does, `bidirectional` bool [B, S]: rows that
    have it are masked rows, whose tokens see the whole of their document, and `masked_index`, `causal_index` [N] (flat
    positions of the targets in rows of either kind). A label is predicted from the position before
    it in either kind, by the same head. Two terms, each a mean over its own targets in nats: `masked_weight` × masked +
    (1 - `masked_weight`) × causal. A kind without a target in a micro-batch adds 0; over an update both are exact.

    The export is a stock decoder. Loaded as it is, it generates; with `is_causal=False` in its configuration it reads
    in both directions, and the logits at s - 1 fill the mask at s. Its `self_check.safetensors` holds logits of both.

    Args:
        model: a stock decoder that reads in both directions with `is_causal=False`, which is tried at once; else
            `UserError`.
        masked_weight: share of the masked term. With the paper's mean over devices, each of which has rows of one kind,
            this is the share of masked rows.
    """

    name: ClassVar[str] = "hybrid"
    needs: ClassVar[frozenset[str]] = CausalLM.needs | {"bidirectional", "masked_index", "causal_index"}
    collator: ClassVar[str] = "hybrid"
    likelihood: ClassVar[bool] = False
    modes: ClassVar[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
        {"causal": {"is_causal": True}, "bidirectional": {"is_causal": False}}
    )

    def __init__(self, model: PreTrainedModel, *, masked_weight: float = 0.5) -> None:
        super().__init__(model)
        if not 0 <= masked_weight <= 1:
            raise UserError(f"objective.masked_weight is a share between 0 and 1, got {masked_weight}")
        if not reads_ahead(model, self.modes["bidirectional"]):
            raise UserError(
                f"this transformers runs {type(model).__name__} from left to right even with is_causal=False, so its "
                "export could not fill masks; choose model.architecture from: gpt2, llama, qwen3"
            )
        self.masked_weight = masked_weight

    def forward(self, batch: Batch) -> StepOutput:
        terms, metrics = [], {}
        weights = {"masked": self.masked_weight, "causal": 1 - self.masked_weight}
        for (kind, weight), found in zip(weights.items(), self._both(batch), strict=True):
            terms.append(weight * found.loss)
            metrics[f"{kind}_loss"] = torch.stack([found.losses.sum(), found.number])
            metrics[f"{kind}_accuracy"] = torch.stack([found.hits.sum(), found.number])
        return StepOutput(terms[0] + terms[1], metrics, torch.stack(terms))

    def _both(self, batch: Batch) -> list[Scored]:
        """The targets of masked rows, then those of causal rows."""
        kinds = batch["masked_index"], batch["causal_index"]
        targets = [batch["labels"].flatten()[index_N] for index_N in kinds]
        before_N = torch.cat(kinds) - 1  # in the same row: what opens a document is no target
        masked, causal = slice(len(kinds[0])), slice(len(kinds[0]), None)
        if self.head is None:
            logits_NV = self._logits(batch).flatten(0, 1)[before_N]
            return [by_logits(logits_NV[masked], targets[0]), by_logits(logits_NV[causal], targets[1])]
        features_NH = scored_features(self.model, self.head, batch, before_N)
        return [
            by_head(self.head, features_NH[masked], targets[0]),
            by_head(self.head, features_NH[causal], targets[1]),
        ]

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.stack([row_count(batch["masked_index"]), row_count(batch["causal_index"])])
