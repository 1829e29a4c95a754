"""Masked and causal language modelling in one decoder-class model (GPT-BERT)."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from sslnlp.errors import UserError
from sslnlp.modes import reads_ahead
from sslnlp.objectives.causal_lm import CausalLM
from sslnlp.objectives.functional import IGNORED, hits, sum_and_count
from sslnlp.types import Batch, StepOutput


class Hybrid(CausalLM):
    """One set of weights that fills masks from both sides and writes from left to right (Charpentier and Samuel, 2024,
    arXiv:2410.24159).

    Reads `input_ids`, `attention_mask`, `labels` [B, S] as `causal_lm` does, and `bidirectional` bool [B, S]: rows that
    have it are masked rows, whose tokens see the whole of their document. A label is predicted from the position before
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
        if not reads_ahead(model, self.modes["bidirectional"]):
            raise UserError(
                f"this transformers runs {type(model).__name__} from left to right even with is_causal=False, so its "
                "export could not fill masks; choose model.architecture from: gpt2, llama, qwen3"
            )
        self.masked_weight = masked_weight

    def forward(self, batch: Batch) -> StepOutput:
        target_N = batch["labels"][:, 1:].flatten()
        logits_NV = self._logits(batch)[:, :-1].flatten(0, 1)
        losses_N = F.cross_entropy(logits_NV.float(), target_N, reduction="none", ignore_index=IGNORED)
        hits_N = hits(logits_NV, target_N)
        terms, metrics = [], {}
        for name, weight, asked_N in self._kinds(batch):
            count = asked_N.sum()
            total = (losses_N * asked_N).sum()
            terms.append(weight * total / count.clamp(min=1))
            metrics[f"{name}_loss"] = torch.stack([total.detach(), count])
            metrics[f"{name}_accuracy"] = sum_and_count(hits_N, asked_N)
        return StepOutput(terms[0] + terms[1], metrics, torch.stack(terms))

    def num_targets(self, batch: Batch) -> Tensor:
        return torch.stack([asked_N.sum() for _, _, asked_N in self._kinds(batch)])

    def _kinds(self, batch: Batch) -> list[tuple[str, float, Tensor]]:
        """Name, weight and targets, bool [B × (S - 1)], of each kind."""
        asked = batch["labels"][:, 1:] != IGNORED
        masked = batch["bidirectional"].any(dim=1, keepdim=True)
        return [
            ("masked", self.masked_weight, (asked & masked).flatten()),
            ("causal", 1 - self.masked_weight, (asked & ~masked).flatten()),
        ]
