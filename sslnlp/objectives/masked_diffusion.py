"""Masked diffusion (MDLM, LLaDA): one encoder that fills any share of masks, and so writes text from nothing."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from sslnlp.generation import diffuse
from sslnlp.heads import prediction_head, scored_features, scored_logits
from sslnlp.last_layer import ask_last_layer
from sslnlp.models import max_positions
from sslnlp.objectives.base import Objective
from sslnlp.objectives.scoring import by_head, by_logits
from sslnlp.types import Batch, StepOutput

SAMPLES, LONGEST_SAMPLE = 3, 48
"""How many texts `samples` writes, and of how many tokens at most."""


class MaskedDiffusion(Objective):
    """The diffusion bound on the negative log-likelihood of the text, in nats a text token (Sahoo et al., 2024,
    arXiv:2406.07524; Nie et al., 2025, arXiv:2502.09992).

    Sum over the masked tokens of cross-entropy × 1 / (share of its row that is masked), over the number of *all* text
    tokens; uniform logits give ln V in every row. In expectation it is at least the code length of the text when its
    tokens are told in random order, given where each document piece ends; so held-out loss converts to an upper bound
    on bits per byte that stands beside a causal model's figure for the same text.

    Reads what `collators.masked_diffusion` makes: the keys of masked LM, `weights` [N] and `text_tokens` [B]. The model
    is not told the rate: it sees how much is masked. Reports `accuracy` and `masked_loss` over the masked tokens,
    unweighted. The export is a stock masked LM; `sslnlp.generation.diffuse` writes with it.
    """

    name: ClassVar[str] = "masked_diffusion"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"input_ids", "attention_mask", "labels", "target_index", "weights", "text_tokens"}
    )
    collator: ClassVar[str] = "masked_diffusion"
    wraps = AutoModelForMaskedLM
    likelihood: ClassVar[bool] = True

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__(model)
        self.head = prediction_head(model)
        ask_last_layer(model)

    def forward(self, batch: Batch) -> StepOutput:
        index_N = batch["target_index"]
        target_N = batch["labels"].flatten()[index_N]
        share_N = batch["weights"] / self.num_targets(batch).clamp(min=1)
        if self.head is not None:
            features_NH = scored_features(self.model, self.head, batch, index_N)
            found = by_head(self.head, features_NH, target_N, share_N=share_N)
        else:
            found = by_logits(scored_logits(self.model, None, batch, index_N), target_N, share_N=share_N)
        metrics = {
            "accuracy": torch.stack([found.hits.sum(), found.number]),
            "masked_loss": torch.stack([found.losses.sum(), found.number]),
        }
        return StepOutput(found.loss, metrics)

    def num_targets(self, batch: Batch) -> Tensor:
        tokens_B: Tensor = batch["text_tokens"]
        return tokens_B.sum()

    def samples(self, tokenizer: PreTrainedTokenizerBase, *, seed: int = 0) -> dict[str, list[str]]:
        """Texts written from masks alone, one token at a time in random order."""
        length = min(LONGEST_SAMPLE, (max_positions(self.model.config) or LONGEST_SAMPLE + 2) - 2)
        texts = diffuse(self.model, tokenizer, length=length, number=SAMPLES, seed=seed)
        return {"written from masks alone": texts}
